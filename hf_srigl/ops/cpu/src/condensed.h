// The C interface of the condensed-layer kernels.
//
// A layer is a matrix W of shape (N out, K in) of which each *active* row keeps exactly k values. The i-th active row
// owns slots [i * k, (i + 1) * k) of `values` and `indices`; its input columns ascend. Slots after the last active row
// are unused: index -1, gradient 0. A row that is not active (ablated) outputs its bias.
//
// Nothing here throws, allocates per row of input, or keeps a pointer after returning. Every function that can fail
// returns 0 or one of the error codes below.
#pragma once
#include <stdint.h>

#if defined(_WIN32)
#define SRIGL_API __declspec(dllexport)
#else
#define SRIGL_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Bumped whenever a signature below changes; the Python side refuses a library with another number.
#define SRIGL_ABI 3

enum srigl_status {
    SRIGL_OK = 0,
    SRIGL_BAD_ARGUMENT = 1,   // a size, type or pointer that makes no sense
    SRIGL_BAD_TOPOLOGY = 2,   // indices out of range, not ascending, or not k for each active row
    SRIGL_NO_MEMORY = 3,
};

enum srigl_dtype { SRIGL_F32 = 0, SRIGL_BF16 = 1 };

// What can be derived from (indices, active) once per topology: the list of active rows, the fan-in, and where each
// row begins in each tile of 256 inputs. About 8 bytes per row and tile; see srigl_plan_bytes.
typedef struct srigl_plan srigl_plan;

SRIGL_API int srigl_abi(void);
// Name of the instruction set in use: "avx512", "avx2", "neon" or "portable".
SRIGL_API const char* srigl_isa(void);
// Restrict the dispatch ("avx2", ...; NULL or "" for the best one). SRIGL_BAD_ARGUMENT if the machine lacks it.
SRIGL_API int srigl_set_isa(const char* name);
// 1 if the library was built with OpenMP, 0 if it always runs on the calling thread.
SRIGL_API int srigl_has_threads(void);

// Checks the topology completely and prepares it. `indices` is int16 (index_bytes 2) or int32 (4), `slots` of them.
SRIGL_API int srigl_plan_create(const void* indices, int index_bytes, const uint8_t* active, int64_t n_out,
                                int64_t n_in, int64_t slots, srigl_plan** plan);
SRIGL_API void srigl_plan_free(srigl_plan* plan);
SRIGL_API int64_t srigl_plan_bytes(const srigl_plan* plan);
SRIGL_API int64_t srigl_plan_fan_in(const srigl_plan* plan);
SRIGL_API int64_t srigl_plan_active(const srigl_plan* plan);
// 1 if (indices, active), of the sizes the plan was made for, are a valid topology that the plan fits: the same active
// rows with the same fan-in. That is all the kernels rely on. Checked as completely as by srigl_plan_create, so that a
// plan found by its fingerprint can be trusted even if somebody constructed a collision.
SRIGL_API int srigl_plan_fits(const srigl_plan* plan, const void* indices, const uint8_t* active);
// A hash of (indices, active), to recognise a topology that arrives in another tensor object.
SRIGL_API uint64_t srigl_fingerprint(const void* indices, int index_bytes, const uint8_t* active, int64_t n_out,
                                     int64_t slots);

// A hash of up to 64 evenly spaced values of 2 or 4 bytes: cheap, and different after nearly every change of all of them.
SRIGL_API uint64_t srigl_sample(const void* values, int64_t slots, int value_bytes);

// y(rows, N) = x(rows, K) W^T + bias. x, values, bias and y share `dtype`; bias may be NULL. Strides are in elements,
// from one row to the next. `indices` must hold what the plan was made from.
SRIGL_API int srigl_forward(const srigl_plan* plan, const void* indices, const void* values, const void* bias,
                            const void* x, int64_t x_stride, void* y, int64_t rows, int dtype, int threads);

// gx(rows, K) = gy W  and  gv[slot] = sum over rows of gy[row, neuron] * x[row, column]. Either may be NULL; x is read
// only for gv, values only for gx. gx is dense (stride K), gv has the plan's slots and the same dtype.
SRIGL_API int srigl_backward(const srigl_plan* plan, const void* indices, const void* values, const void* gy,
                             int64_t gy_stride, const void* x, int64_t x_stride, void* gx, void* gv, int64_t rows,
                             int dtype, int threads);

// dense(N, K) = W, for what a matrix product does better.
SRIGL_API int srigl_scatter(const srigl_plan* plan, const void* indices, const void* values, void* dense, int dtype,
                            int threads);

#ifdef __cplusplus
}
#endif
