#include <stdint.h>

#include "vec_avx512.h"

#include "loops.h"
