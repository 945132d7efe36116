// A team of threads, or just the caller when there is one thread or no OpenMP.
#pragma once
#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace srigl {

struct Team {
    int id, size;
    void barrier() const {
#ifdef _OPENMP
        if (size > 1) {
#pragma omp barrier
        }
#endif
    }
    // This thread's contiguous share of [0, n), in whole units.
    void share(int64_t n, int64_t unit, int64_t* begin, int64_t* end) const {
        const int64_t units = (n + unit - 1) / unit;
        *begin = units * id / size * unit;
        *end = units * (id + 1) / size * unit;
        if (*begin > n) *begin = n;
        if (*end > n) *end = n;
    }
};

template <typename Body> void run(int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        body(Team{omp_get_thread_num(), omp_get_num_threads()});
        return;
    }
#endif
    (void)threads;
    body(Team{0, 1});
}

}  // namespace srigl
