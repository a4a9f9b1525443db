#include <stdint.h>

#include "vec_avx2.h"

#include "loops.h"
