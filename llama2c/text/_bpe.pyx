# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled half of the tokenizer: parses the bytes of a tokenizer.bin and merges tokens.

It opens no file and knows no str. A Vocabulary never changes once it is made, so any number of threads may use it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.number cimport PyNumber_Index
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    UNK = 0
    BOS = 1
    EOS = 2
    FIRST_BYTE = 3  # token of byte 0x00 in a tokenizer.bin; byte b is token b + 3
    MIN_TOKENS = 259  # the three above and the 256 bytes

cdef enum Kind:  # of a token, where they are told apart
    TEXT = 0  # made by merging
    SPECIAL = 1  # never made from text; the bytes are among them
    WHOLE = 2  # taken from the text in one piece before any merging, and never merged
    HIDDEN = 3  # merges like TEXT; where it is left over, it becomes the tokens of its bytes

cdef float LOWEST_SCORE = -1e10  # a merge must score more than this
cdef uint64_t HASH_BASE = 0x9E6C63D0676A9A99U  # odd, otherwise arbitrary
cdef uint64_t HASH_MIX = 0x9E3779B97F4A7C15U  # 2**64 / golden ratio: spreads a hash over the high bits


cdef struct Token:
    const uint8_t *spelling
    int64_t length  # of the spelling, in bytes
    uint64_t hash  # of the spelling
    uint64_t power  # HASH_BASE ** length
    float score


cdef struct Symbol:  # one place of the text being merged; its neighbours are -1 at the ends
    int64_t previous
    int64_t next
    int32_t token  # -1 once merged into the symbol on its left


cdef struct Merge:  # a heap entry: the symbol at `left` and the one after it would become `token`
    float score
    int32_t token
    int64_t left


# ---------------------------------------------------------------------------------------------------------
# Small pieces


cdef inline uint32_t little_endian(const uint8_t *p) noexcept nogil:
    return p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24


cdef inline float little_endian_float(const uint8_t *p) noexcept nogil:
    cdef uint32_t bits = little_endian(p)
    cdef float value
    memcpy(&value, &bits, sizeof(float))
    return value


cdef inline uint64_t extend_hash(uint64_t hash, uint8_t byte) noexcept nogil:
    """A polynomial in HASH_BASE, modulo 2**64: hash(a + b) = hash(a) * HASH_BASE ** len(b) + hash(b)."""
    return hash * HASH_BASE + byte + 1


cdef inline int hex_digit(uint8_t c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    if c'A' <= c <= c'F':
        return c - c'A' + 10
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    return -1


cdef inline int byte_value(const uint8_t *spelling, int64_t length) noexcept nogil:
    """<0x0A> -> 10; -1 for every other spelling."""
    if length != 6 or memcmp(spelling, b"<0x", 3) != 0 or spelling[5] != c'>':
        return -1
    cdef int high = hex_digit(spelling[3])
    cdef int low = hex_digit(spelling[4])
    return -1 if high < 0 or low < 0 else high * 16 + low


cdef inline int64_t code_point_length(const uint8_t *text, int64_t n) noexcept nogil:
    """Bytes of the first code point: any byte and up to three continuation bytes after it, valid UTF-8 or not."""
    cdef int64_t length = 1
    while length < n and length < 4 and text[length] & 0xC0 == 0x80:
        length += 1
    return length


# ---------------------------------------------------------------------------------------------------------
# The heap of possible merges: the highest score first, the leftmost among equals


cdef inline bint goes_before(const Merge *a, const Merge *b) noexcept nogil:
    return a.score > b.score or (a.score == b.score and a.left < b.left)


cdef inline void heap_push(Merge *heap, int64_t *n, Merge merge) noexcept nogil:
    cdef int64_t hole = n[0]
    cdef int64_t parent
    n[0] += 1
    while hole > 0:
        parent = (hole - 1) // 2
        if not goes_before(&merge, &heap[parent]):
            break
        heap[hole] = heap[parent]
        hole = parent
    heap[hole] = merge


cdef inline Merge heap_pop(Merge *heap, int64_t *n) noexcept nogil:
    n[0] -= 1
    cdef Merge first = heap[0]
    cdef Merge last = heap[n[0]]
    cdef int64_t hole = 0
    cdef int64_t child = 1
    while child < n[0]:
        if child + 1 < n[0] and goes_before(&heap[child + 1], &heap[child]):
            child += 1
        if not goes_before(&heap[child], &last):
            break
        heap[hole] = heap[child]
        hole = child
        child = 2 * hole + 1
    heap[hole] = last
    return first


# ---------------------------------------------------------------------------------------------------------
# The vocabulary


cdef class Vocabulary:
    """The tokens of a tokenizer.bin, given its bytes. vocab_size None: all tokens up to the end of the data.

    Anything but exactly that many well-formed tokens is a ValueError, without a file name, which the caller knows.
    Where two tokens have the same spelling, text is encoded as the one with the lower id.

    kinds       one byte for each token, a Kind; HIDDEN ones come last and do not count in `size`. With kinds, text is encoded
                as SentencePiece does it: a merge is allowed however low its score, tokens of bytes and BOS do not merge, and
                no space is put before a text (the caller does that). None: as the C program does it.
    first_byte  the token of byte 0x00; the other bytes follow
    drop_space  piece drops one space after BOS
    """

    cdef bytes data  # the file; the spellings point into it
    cdef bytes kinds_data  # keeps `kinds` alive
    cdef const uint8_t *kinds  # (n_tokens,) NULL: not told apart
    cdef int32_t first_byte
    cdef bint drop_space
    cdef uint8_t begins_whole[256]  # 1 where a WHOLE token begins with this byte
    cdef int64_t longest_whole  # bytes
    cdef int64_t n_tokens  # with the hidden ones
    cdef Token *tokens  # (n_tokens,)
    cdef int32_t *table  # (1 << (64 - table_shift),) token + 1, 0 if free: a hash table with linear probing
    cdef int table_shift
    cdef uint8_t *adjacent  # (256, 256) 1 where some spelling has the first byte just before the second
    cdef readonly int64_t size

    def __cinit__(self, bytes data not None, vocab_size=None, bytes kinds=None, int32_t first_byte=FIRST_BYTE,
                  bint drop_space=True):
        if PyBytes_GET_SIZE(data) >= 1 << 31:  # below this, no id and no length can overflow
            raise ValueError(f"expected a tokenizer of less than 2 GiB, found {len(data)} bytes")
        self.data = data
        self.n_tokens = self.size = count_tokens(data, vocab_size)
        if first_byte < 0 or first_byte + 256 > self.n_tokens:
            raise ValueError(f"first_byte: expected 0 to {self.n_tokens - 256}, found {first_byte}")
        self.first_byte = first_byte
        self.drop_space = drop_space
        if kinds is not None:
            if PyBytes_GET_SIZE(kinds) != self.n_tokens:
                raise ValueError(f"expected a kind for each of {self.n_tokens} tokens, found {len(kinds)}")
            self.kinds_data = kinds
            self.kinds = <const uint8_t *>PyBytes_AS_STRING(kinds)
            self.size -= kinds.count(HIDDEN)
        self.table_shift = 62  # the table is at most half full
        while 1 << (64 - self.table_shift) < 2 * self.n_tokens:
            self.table_shift -= 1
        self.tokens = <Token *>PyMem_RawCalloc(self.n_tokens, sizeof(Token))
        self.table = <int32_t *>PyMem_RawCalloc(1 << (64 - self.table_shift), sizeof(int32_t))
        self.adjacent = <uint8_t *>PyMem_RawCalloc(256 * 256, 1)
        if not self.tokens or not self.table or not self.adjacent:
            raise MemoryError
        self.load()

    def __dealloc__(self):
        PyMem_RawFree(self.tokens)
        PyMem_RawFree(self.table)
        PyMem_RawFree(self.adjacent)

    cdef void load(self) noexcept:
        """Fill `tokens`, `table` and `adjacent` from `data`, which count_tokens has checked."""
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(self.data) + 4
        cdef int64_t i, j, slot
        cdef Token *token
        for i in range(self.n_tokens):
            token = &self.tokens[i]
            token.score = little_endian_float(p)
            token.length = little_endian(p + 4)
            token.spelling = p + 8
            token.power = 1
            for j in range(token.length):
                token.hash = extend_hash(token.hash, token.spelling[j])
                token.power *= HASH_BASE
                if j > 0:
                    self.adjacent[256 * token.spelling[j - 1] + token.spelling[j]] = 1
            p = token.spelling + token.length
            if self.kinds != NULL:
                if self.kinds[i] == SPECIAL:
                    continue
                if self.kinds[i] == WHOLE:
                    self.begins_whole[token.spelling[0]] = 1
                    self.longest_whole = max(self.longest_whole, token.length)
            slot = self.find_slot(token.hash, token.spelling, token.length, NULL, 0)
            if self.table[slot] == 0:
                self.table[slot] = <int32_t>i + 1

    cdef int64_t find_slot(self, uint64_t hash, const uint8_t *left, int64_t n_left,
                           const uint8_t *right, int64_t n_right) noexcept nogil:
        """The slot of the token that is spelled left + right, or the free slot where it would go."""
        cdef int64_t mask = (<int64_t>1 << (64 - self.table_shift)) - 1
        cdef int64_t slot = <int64_t>((hash * HASH_MIX) >> self.table_shift)
        cdef const Token *token
        while self.table[slot] != 0:
            token = &self.tokens[self.table[slot] - 1]
            if (token.hash == hash and token.length == n_left + n_right
                    and memcmp(token.spelling, left, n_left) == 0
                    and (n_right == 0 or memcmp(token.spelling + n_left, right, n_right) == 0)):
                break
            slot = (slot + 1) & mask
        return slot

    cdef int32_t find(self, const uint8_t *spelling, int64_t length) noexcept nogil:
        """The token with this spelling, -1 if there is none."""
        cdef uint64_t hash = 0
        cdef int64_t i
        for i in range(length):
            hash = extend_hash(hash, spelling[i])
        return self.table[self.find_slot(hash, spelling, length, NULL, 0)] - 1

    cdef int32_t find_whole(self, const uint8_t *text, int64_t n_bytes) noexcept nogil:
        """The longest WHOLE token that the text begins with, -1 if there is none."""
        cdef int32_t token, longest = -1
        cdef uint64_t hash = 0
        cdef int64_t i
        if not self.begins_whole[text[0]]:
            return longest
        for i in range(min(n_bytes, self.longest_whole)):
            hash = extend_hash(hash, text[i])
            token = self.table[self.find_slot(hash, text, i + 1, NULL, 0)] - 1
            if token >= 0 and self.kinds[token] == WHOLE:
                longest = token
        return longest

    cdef int32_t find_joined(self, int32_t a, int32_t b) noexcept nogil:
        """The token that is spelled as token a followed by token b, -1 if there is none."""
        cdef const Token *left = &self.tokens[a]
        cdef const Token *right = &self.tokens[b]
        cdef uint64_t hash = left.hash * right.power + right.hash
        return self.table[self.find_slot(hash, left.spelling, left.length, right.spelling, right.length)] - 1

    # -- encoding

    def definition(self):
        """What decides how it encodes and decodes, as bytes."""
        kinds = b"" if self.kinds_data is None else self.kinds_data
        return b"%d %d %d %d\n" % (self.size, self.first_byte, self.drop_space, len(kinds)) + kinds + self.data

    def encode(self, bytes text not None, bint bos, bint eos):
        """The ids of a text as a list, those of the C program unless there are kinds. Costs n log n, without the GIL."""
        cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(text)
        cdef int64_t n_bytes = PyBytes_GET_SIZE(text)
        # Never more symbols than BOS, the leading space and a token a byte; never more heap entries than
        # two a symbol: one for each pair at first, and one more for each merge (one popped, two pushed).
        cdef int64_t bytes_each = sizeof(Symbol) + 2 * sizeof(Merge)
        if n_bytes > PY_SSIZE_T_MAX // bytes_each - 2:
            raise MemoryError
        cdef int64_t capacity = n_bytes + 2
        cdef Symbol *symbols = <Symbol *>PyMem_RawMalloc(capacity * bytes_each)
        if not symbols:
            raise MemoryError
        cdef int64_t n_symbols, i, j
        cdef int32_t token
        cdef list ids = []
        try:
            with nogil:
                n_symbols = self.split(start, n_bytes, bos, symbols)
                self.merge(symbols, n_symbols, <Merge *>(symbols + capacity))
            for i in range(n_symbols):
                token = symbols[i].token
                if token >= self.size:  # a hidden one
                    for j in range(self.tokens[token].length):
                        ids.append(self.first_byte + self.tokens[token].spelling[j])
                elif token >= 0:
                    ids.append(token)
        finally:
            PyMem_RawFree(symbols)
        if eos:
            ids.append(EOS)
        return ids

    cdef int64_t split(self, const uint8_t *text, int64_t n_bytes, bint bos, Symbol *symbols) noexcept nogil:
        """Fill `symbols` with the tokens that merging starts from; return their number."""
        cdef int64_t n = 0, i = 0, j, length
        cdef int32_t token
        if bos:
            symbols[n].token = BOS
            n += 1
        if n_bytes > 0 and self.kinds == NULL:
            token = self.find(b" ", 1)
            symbols[n].token = token if token >= 0 else FIRST_BYTE + c' '
            n += 1
        while i < n_bytes:
            if self.longest_whole > 0:
                token = self.find_whole(text + i, n_bytes - i)
                if token >= 0:
                    symbols[n].token = token
                    n += 1
                    i += self.tokens[token].length
                    continue
            if self.kinds != NULL and text[i] < 0x80:  # a space put before broken bytes is a character by itself
                length = 1
            else:
                length = code_point_length(text + i, n_bytes - i)
            token = self.find(text + i, length)
            if token >= 0:
                symbols[n].token = token
                n += 1
            else:
                for j in range(i, i + length):
                    symbols[n].token = self.first_byte + text[j]
                    n += 1
            i += length
        for i in range(n):
            symbols[i].previous = i - 1
            symbols[i].next = i + 1 if i + 1 < n else -1
        return n

    cdef void merge(self, Symbol *symbols, int64_t n_symbols, Merge *heap) noexcept nogil:
        """Merge neighbours, best first, until no pair is a token. The right one of a pair becomes -1.

        The text is cut into stretches (mostly words) where no spelling has these two bytes next to each other, so
        that no merge can cross the cut. Each is merged by itself: the result is the same, and the heap stays in
        the processor's cache.
        """
        cdef int64_t n_heap = 0
        cdef int64_t i
        for i in range(n_symbols - 1):
            if self.may_join(symbols[i].token, symbols[i + 1].token):
                self.push_pair(symbols, i, heap, &n_heap)
            else:
                self.merge_stretch(symbols, heap, n_heap)
                n_heap = 0
        self.merge_stretch(symbols, heap, n_heap)

    cdef bint may_join(self, int32_t a, int32_t b) noexcept nogil:
        cdef const Token *left = &self.tokens[a]
        return self.adjacent[256 * left.spelling[left.length - 1] + self.tokens[b].spelling[0]]

    cdef void merge_stretch(self, Symbol *symbols, Merge *heap, int64_t n_heap) noexcept nogil:
        """Carry out the n_heap merges in the heap, and those that follow from them."""
        cdef int64_t left, right, after
        cdef Merge best
        while n_heap > 0:
            best = heap_pop(heap, &n_heap)
            left = best.left
            # Entries of pairs that no longer exist are dropped here. Merging keeps the joined spelling of all
            # symbols, and a pair at `left` only grows: if its length is still right, so is its spelling.
            if symbols[left].token < 0 or symbols[left].next < 0:
                continue
            right = symbols[left].next
            if (self.tokens[symbols[left].token].length + self.tokens[symbols[right].token].length
                    != self.tokens[best.token].length):
                continue
            after = symbols[right].next
            symbols[left].token = best.token
            symbols[left].next = after
            symbols[right].token = -1
            if after >= 0:
                symbols[after].previous = left
                self.push_pair(symbols, left, heap, &n_heap)
            if symbols[left].previous >= 0:
                self.push_pair(symbols, symbols[left].previous, heap, &n_heap)

    cdef void push_pair(self, const Symbol *symbols, int64_t left, Merge *heap,
                        int64_t *n_heap) noexcept nogil:
        """Push the merge of the symbol `left` and the one after it, if it gives a token."""
        cdef Merge merge
        cdef int32_t a = symbols[left].token
        cdef int32_t b = symbols[symbols[left].next].token
        if self.kinds != NULL and (self.kinds[a] in (SPECIAL, WHOLE) or self.kinds[b] in (SPECIAL, WHOLE)):
            return
        merge.left = left
        merge.token = self.find_joined(a, b)
        if merge.token >= 0:
            merge.score = self.tokens[merge.token].score
            if merge.score > LOWEST_SCORE or self.kinds != NULL:
                heap_push(heap, n_heap, merge)

    # -- decoding

    def piece(self, token, bint after_bos=False):
        """The bytes of a token: none for special ones; after BOS a spelling loses one leading space."""
        cdef int64_t index
        try:
            index = PyNumber_Index(token)
        except TypeError:
            raise TypeError(f"token: expected an int, found {type(token).__name__}") from None
        except OverflowError:
            index = -1
        if index < 0 or index >= self.size:
            raise ValueError(f"token: expected 0 to {self.size - 1}, found {token}")
        if self.kinds == NULL:
            if index <= EOS:
                return b""
        elif self.kinds[index] == SPECIAL and not self.first_byte <= index < self.first_byte + 256:
            return b""
        cdef const uint8_t *spelling = self.tokens[index].spelling
        cdef int64_t length = self.tokens[index].length
        if after_bos and self.drop_space and spelling[0] == c' ':  # the byte token <0x20>, spelled so, stays a space
            spelling += 1
            length -= 1
        cdef int value = byte_value(spelling, length)
        cdef uint8_t byte
        if value >= 0:
            byte = <uint8_t>value
            return PyBytes_FromStringAndSize(<const char *>&byte, 1)
        return PyBytes_FromStringAndSize(<const char *>spelling, length)


cdef int64_t count_tokens(bytes data, vocab_size) except -1:
    """Check the layout of a tokenizer.bin (max_token_length is not used). Returns the number of tokens."""
    cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef int64_t n_bytes = PyBytes_GET_SIZE(data)
    cdef int64_t wanted = -1 if vocab_size is None else min(vocab_size, 1 << 31)  # no file has as many
    cdef int64_t position = 4, n = 0, length
    cdef float score
    if n_bytes < 4:
        raise ValueError(f"expected a header of 4 bytes, found {n_bytes}")
    while position < n_bytes and n != wanted:
        if n_bytes - position < 8:
            raise ValueError(f"token {n}: expected 8 bytes of score and length, found {n_bytes - position}")
        score = little_endian_float(start + position)
        if score != score:
            raise ValueError(f"token {n}: expected a score, found NaN")
        length = <int32_t>little_endian(start + position + 4)
        position += 8
        if length < 1 or length > n_bytes - position:
            raise ValueError(
                f"token {n}: expected a length of 1 to {n_bytes - position}, the bytes left, found {length}")
        position += length
        n += 1
    if wanted >= 0 and n != wanted:
        raise ValueError(f"expected {vocab_size} tokens, found {n}")
    if position != n_bytes:
        raise ValueError(f"expected the end after {n} tokens, at byte {position}, found {n_bytes} bytes")
    if n < MIN_TOKENS:
        raise ValueError(f"expected at least {MIN_TOKENS} tokens, found {n}")
    return n
