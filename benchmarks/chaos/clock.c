/* Library for LD_PRELOAD that moves a process's time of day by `offset` seconds; built by `clock_environment` (faults.py).

   The offset is an int64 in the file STRETTO_CHAOS_CLOCK, which may change at any time. Only the time of day moves, as if
   it were set; monotonic clocks continue. A wait until a time of day ends when this clock reaches it, as with the kernel's
   clock: a step forward ends it, a step back makes it longer. That includes gRPC's timers, because Abseil in Triton's
   server waits with its own futex system calls (`syscall`). Debian's libfaketime (0.9.10) does not suffice: it treats
   monotonic times of clock_nanosleep as times of day. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum {
    DAYS_BEGIN_S = 1000000000, /* earlier times belong to a monotonic clock: no machine is up for 30 years */
    SECOND_NS = 1000000000,
    SLICE_NS = SECOND_NS / 10, /* longest delay until a wait notices a moved clock */
};

static const volatile int64_t *moved;

__attribute__((constructor)) static void open_clock(void)
{
    const char *path = getenv("STRETTO_CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof *moved, PROT_READ, MAP_SHARED, file, 0);
    moved = mapped == MAP_FAILED ? NULL : mapped;
    close(file);
}

static int64_t offset(void) { return moved ? *moved : 0; }

/* The real system call, because this library replaces `syscall`. */
static long call(long number, long a, long b, long c, long d, long e, long f)
{
    static long (*real)(long, ...);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "syscall");
    return real(number, a, b, c, d, e, f);
}

static struct timespec true_now(void)
{
    struct timespec now;
    call(SYS_clock_gettime, CLOCK_REALTIME, (long)&now, 0, 0, 0, 0);
    return now;
}

static struct timespec earlier(struct timespec a, struct timespec b)
{
    return a.tv_sec < b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec < b.tv_nsec) ? a : b;
}

static struct timespec of_the_true_day(const struct timespec *until)
{
    struct timespec at = *until;
    at.tv_sec -= offset();
    return at;
}

/* Return 1 if a wait that returned has reached its time; a wait for a slice may not have. */
static int is_over(const struct timespec *until)
{
    struct timespec at = of_the_true_day(until), now = true_now(), first = earlier(now, at);
    return until->tv_sec <= DAYS_BEGIN_S || (first.tv_sec == at.tv_sec && first.tv_nsec == at.tv_nsec);
}

/* Return the kernel's time until which to wait now for a time of this clock: at most one slice away. */
static struct timespec slice(const struct timespec *until)
{
    struct timespec end = true_now();
    if (until->tv_sec <= DAYS_BEGIN_S)
        return *until;
    end.tv_nsec += SLICE_NS;
    if (end.tv_nsec >= SECOND_NS) {
        end.tv_nsec -= SECOND_NS;
        end.tv_sec++;
    }
    return earlier(end, of_the_true_day(until));
}

/* Wait for futexes until a time of day; other system calls are unchanged. */
long syscall(long number, ...)
{
    va_list given;
    long word[6];
    va_start(given, number);
    for (int i = 0; i < 6; i++)
        word[i] = va_arg(given, long);
    va_end(given);
    const struct timespec *until = (const struct timespec *)word[3];
    int by_day = (word[1] & ~FUTEX_PRIVATE_FLAG) == (FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME);
    if (number != SYS_futex || !by_day || !until)
        return call(number, word[0], word[1], word[2], word[3], word[4], word[5]);
    for (;;) {
        struct timespec at = slice(until);
        long result = call(number, word[0], word[1], word[2], (long)&at, word[4], word[5]);
        if (!result || errno != ETIMEDOUT)
            return result;
        if (is_over(until)) {
            errno = ETIMEDOUT;
            return result;
        }
    }
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (call(SYS_clock_gettime, clock, (long)now, 0, 0, 0, 0))
        return -1;
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        now->tv_sec += offset();
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    if (call(SYS_gettimeofday, (long)now, (long)zone, 0, 0, 0, 0))
        return -1;
    now->tv_sec += offset();
    return 0;
}

time_t time(time_t *told)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (told)
        *told = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *now, int base)
{
    return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, now) ? base : 0;
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until, struct timespec *left)
{
    int by_day = clock == CLOCK_REALTIME && flags & TIMER_ABSTIME;
    do {
        struct timespec at = by_day ? slice(until) : *until;
        if (call(SYS_clock_nanosleep, clock, flags, (long)&at, (long)left, 0, 0))
            return errno;
    } while (by_day && !is_over(until));
    return 0;
}

/* Return 0 after a slice, like a spurious wakeup, which every caller must handle. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until)
{
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec at = slice(until);
    if (!real) /* the current symbol version, not that for programs of 2002 */
        *(void **)&real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    int result = real(condition, mutex, &at);
    return result == ETIMEDOUT && !is_over(until) ? 0 : result;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until)
{
    static int (*real)(sem_t *, const struct timespec *);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "sem_timedwait");
    for (;;) {
        struct timespec at = slice(until);
        int result = real(semaphore, &at);
        if (!result || errno != ETIMEDOUT)
            return result;
        if (is_over(until)) {
            errno = ETIMEDOUT;
            return result;
        }
    }
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until)
{
    static int (*real)(pthread_mutex_t *, const struct timespec *);
    int result;
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
    do {
        struct timespec at = slice(until);
        result = real(mutex, &at);
    } while (result == ETIMEDOUT && !is_over(until));
    return result;
}
