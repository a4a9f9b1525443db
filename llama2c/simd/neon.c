#include <stdint.h>

#include "vec_neon.h"

#include "loops.h"
