#include <stdint.h>

#include "vec_generic.h"

#include "loops.h"
