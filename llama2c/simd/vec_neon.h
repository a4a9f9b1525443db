/* Sixteen floats in four NEON registers (AArch64, where every machine has them). */
#include <arm_neon.h>

#define LEVEL neon
#define HAVE_FMA
#define LANES 4
#define TILE_ROWS 4
#define TILE_OUTS 6
#define VALUE_REGS 16

typedef float32x4_t reg;

static inline reg reg_zero(void) { return vdupq_n_f32(0); }
static inline reg reg_set1(float a) { return vdupq_n_f32(a); }
static inline reg reg_load(const float *p) { return vld1q_f32(p); }
static inline void reg_store(float *p, reg a) { vst1q_f32(p, a); }
static inline reg reg_add(reg a, reg b) { return vaddq_f32(a, b); }
static inline reg reg_sub(reg a, reg b) { return vsubq_f32(a, b); }
static inline reg reg_mul(reg a, reg b) { return vmulq_f32(a, b); }
static inline reg reg_div(reg a, reg b) { return vdivq_f32(a, b); }
static inline reg reg_fma(reg a, reg b, reg c) { return vfmaq_f32(c, a, b); }
static inline reg reg_max(reg a, reg b) { return vmaxq_f32(a, b); }
static inline reg reg_min(reg a, reg b) { return vminq_f32(a, b); }
static inline reg reg_shl23(reg a) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a), 23)); }

static inline reg reg_load_f16(const void *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
static inline void reg_narrow(uint16_t *half, const float *x) {
    vst1_u16(half, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x))));
}
static inline reg reg_load_bf16(const void *p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vreinterpret_u16_u8(vld1_u8(p))), 16));
}
