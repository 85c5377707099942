"""What clients reach in Triton's place: it checks and limits every call before Triton, behind Unix sockets, sees it."""
