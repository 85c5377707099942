"""Records and rules of a request shared by front end, scheduler and worker."""
