"""Workarounds for faults of Triton 24.10 (server 2.51), the release in the wheel nvidia-pytriton.

Each module is imported only for a server that may have its fault (`stretto.launcher.workarounds`). Later releases were
not tried: statements about them come from Triton's sources. Modules:

`wheel`: The wheel has the server's files, but no stub beside them for this version of Python. The launcher copies the
Python backend and adds the stub. A container's server is complete.

`dead_locks`: A killed stub may hold a lock in the memory that it shares with Triton. These mutexes are robust, and
Triton ends when it locks one whose owner has died (`boost::interprocess::lock_exception`, thrown where no exception is
allowed). The launcher releases such locks before it unloads the model. The most important one is the lock of the memory
itself, which the destructors take (`StubLauncher::TerminateStub`). This fails if Triton locks immediately. Its thread
for the stub's messages does so while it handles a message that the stub waits for (setting a metric, querying a
client). Then all processes are restarted.

`start`: While a model initializes, Triton gives up on a stub that sends no sign of life for a second (5 s since 25.08).
This happens if the whole machine stalls. It then waits for that stub to end, without having asked it to. Until 25.08,
Triton also waits forever for the first message of a stub that has died (python_backend, pull request 408). The launcher
detects both and restarts all processes, up to ten times before the first readiness. Triton frees data that the stub has
not read by then, so nothing slow may run before the stub has read it (`stretto.triton_io.stub`).

`clock`: Our own code uses monotonic clocks. The timers of Triton's gRPC 1.54 use the time of day, and streams need them
to end. After a step back by more than 60 s, the launcher restarts Triton, and streams in progress end with
`unavailable`. After a shorter step, the end of a stream may be late by the size of the step. A step forward has no
effect. Without `stretto serve`, restart Triton after a step back. Triton 26.08 has gRPC 1.81, which was not tried.

`crash`: Triton's handler of a fatal signal allocates memory to print a stack trace, and waits forever if the crash has
left the heap locked. The launcher detects threads that stay in such a handler, and restarts all processes.

Some workarounds need no code of their own, or belong to other programs, and are used with every server:

Growing shared memory. A stub crashes if the memory shared with Triton grows while two of its threads use it. Each maps
it again, and one reads memory that the other has just unmapped (`SharedMemoryManager::GrowIfNeeded`, called without a
lock). Triton begins with 1 MiB, which the first burst of streams exceeds. The launcher sets 16 MiB for each of the
three models, and grows it by the same amount, so only large audio makes it grow. After a crash, the model is restarted.

Unread requests. A stub must also read a request within a second of its last sign of life. Otherwise Triton answers
`Stub process … is not healthy`, frees the request, and assigns later answers to the wrong requests. Observed results: a
crashed stub, a crashed server, and no answer at all for an hour. The proxy reports such an answer to the launcher, and
the model is restarted. Models therefore return from `execute` immediately.

Requests that never end. A model whose stub died during requests is never freed: 35 threads and 16 MiB of shared memory
remain for each. The whole server is restarted after eight restarts of models.

Disconnected clients. If a call is cancelled while a response is being sent, in particular the last one, Triton uses
freed memory (until 25.01) or leaks memory (until 25.04). The proxy therefore flags disconnected clients in a file of
the runtime directory, and discards the remaining responses. This stays with every server, because Triton reports a
disconnect only to the last model of an ensemble.

Streams. The header `triton_grpc_error` makes Triton read freed memory (until 26.04), and so may responses of two models
on one stream. Classifications of strings crash it. The proxy removes the header and refuses the requests.

Responses of long requests. Until 25.03, Triton keeps each response until its request ends: 350 MB for an hour of
speech. The client therefore continues a session with another request after 8 MiB, if the session can be resumed.
"""
