/* A process whose clock of the day is `offset` seconds off, for LD_PRELOAD: what `clock_environment` of faults.py builds.

   The offset is an int64 in the file STRETTO_CHAOS_CLOCK, which may change at any time. Only the clock of the day moves,
   as where somebody sets it; monotonic clocks go on. Waits until a moment of that day are until the true one. Debian's
   libfaketime (0.9.10) is not up to it: it takes the monotonic moments of clock_nanosleep for those of a day. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { DAYS_BEGIN_S = 1000000000 }; /* moments before that are a monotonic clock's: no machine is up for 30 years */

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

static struct timespec of_the_true_day(const struct timespec *until)
{
    struct timespec at = *until;
    if (at.tv_sec > DAYS_BEGIN_S)
        at.tv_sec -= offset();
    return at;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (syscall(SYS_clock_gettime, clock, now))
        return -1;
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        now->tv_sec += offset();
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    if (syscall(SYS_gettimeofday, now, zone))
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
    struct timespec at = flags & TIMER_ABSTIME ? of_the_true_day(until) : *until;
    return syscall(SYS_clock_nanosleep, clock, flags, &at, left) ? errno : 0;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until)
{
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec at = of_the_true_day(until);
    if (!real) /* the version that is not for programs of 2002 */
        *(void **)&real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    return real(condition, mutex, &at);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until)
{
    static int (*real)(sem_t *, const struct timespec *);
    struct timespec at = of_the_true_day(until);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "sem_timedwait");
    return real(semaphore, &at);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until)
{
    static int (*real)(pthread_mutex_t *, const struct timespec *);
    struct timespec at = of_the_true_day(until);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
    return real(mutex, &at);
}
