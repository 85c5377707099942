"""What front end, scheduler and worker all know of a request."""
