// What requests say of single tokens, done to rows of logits in place: allowed and banned tokens, biases, penalties.
//
// In this order, which is vLLM's: tokens that the row's mask lacks become impossible; banned tokens too; biases are
// added; then each token of prompt or output, once however often it occurs:
//
//   logit = (logit > 0 ? logit / repetition : logit * repetition) - frequency * count - (count > 0 ? presence : 0)
//
// with count its occurrences in the output. Impossible stays impossible. Tokens beyond the vocabulary are passed over.
//
//   logits   [rows, stride] of f32        raw   the same, for rows that are wanted as they were (`keep`)
//   masks    [masks, ceil(vocabulary / 32)] words: bit t % 32 of word t / 32 allows token t; also what a grammar says
//   counts   [blocks, vocabulary] of u32, zeros before and after
//   history, banned, biases   concatenated over rows; biases are pairs of token and f32 bits
//
// Grid: any number of blocks of 1024 threads; each takes every so-many-th change. Bytes: 8 * vocabulary where a mask is,
// 8 * vocabulary where the row is kept; else some 32 bytes for each token that is spoken of.
#include "prelude.cuh"

struct RowChanges {
    u32 row;
    u32 keep;  // row of `raw` that the logits are copied to first; NONE for nowhere
    u32 mask;  // which of the masks; NONE for all tokens
    u32 banned_first, banned_count;
    u32 biases_first, biases_count;
    u32 prompt_first, prompt_count;
    u32 output_first, output_count;
    float repetition, frequency, presence;
};

struct ChangesArguments {
    float* logits;
    float* raw;
    const RowChanges* changes;
    const u32* masks;
    const u32* banned;
    const u32* biases;
    const u32* history;
    u32* counts;
    u32 changes_count;
    u32 vocabulary;
    u32 stride;
};

// Of a count: the token occurs in prompt or output.
constexpr u32 SEEN = 0x80000000u;

DEVICE void add_biases(float* logits, const u32* biases, u32 count, u32 vocabulary) {
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        u32 token = biases[2 * i];
        if (token >= vocabulary) continue;
        // Of several for one token the first does the work of all, in their order.
        bool first = true;
        for (u32 j = 0; j < i && first; j++) first = biases[2 * j] != token;
        if (!first) continue;
        float logit = logits[token];
        for (u32 j = i; j < count; j++)
            if (biases[2 * j] == token) logit = __fadd_rn(logit, bits_to_float(biases[2 * j + 1]));
        logits[token] = logit;
    }
}

DEVICE void penalise(float* logits, const RowChanges& change, u32 token, u32 count) {
    float logit = logits[token];
    if (!(logit > never())) return;
    logit = logit > 0.0f ? logit / change.repetition : __fmul_rn(logit, change.repetition);
    logit = __fsub_rn(logit, __fmul_rn(change.frequency, (float)count));
    if (count > 0) logit = __fsub_rn(logit, change.presence);
    logits[token] = logit;
}

DEVICE void add_penalties(const ChangesArguments& a, float* logits, const RowChanges& change) {
    u32* counts = a.counts + (u64)blockIdx.x * a.vocabulary;
    const u32* prompt = a.history + change.prompt_first;
    const u32* output = a.history + change.output_first;
    for (u32 i = threadIdx.x; i < change.prompt_count; i += blockDim.x)
        if (prompt[i] < a.vocabulary) atomicOr(&counts[prompt[i]], SEEN);
    __syncthreads();
    for (u32 i = threadIdx.x; i < change.output_count; i += blockDim.x) {
        if (output[i] >= a.vocabulary) continue;
        atomicOr(&counts[output[i]], SEEN);
        atomicAdd(&counts[output[i]], 1u);
    }
    __syncthreads();
    // Whoever takes a token's count away does its work, and leaves zeros behind.
    for (u32 i = threadIdx.x; i < change.prompt_count + change.output_count; i += blockDim.x) {
        u32 token = i < change.prompt_count ? prompt[i] : output[i - change.prompt_count];
        if (token >= a.vocabulary) continue;
        u32 count = atomicExch(&counts[token], 0u);
        if (count != 0) penalise(logits, change, token, count & ~SEEN);
    }
}

DEVICE void change_row(const ChangesArguments& a, const RowChanges& change) {
    float* logits = a.logits + (u64)change.row * a.stride;
    const u32* mask = a.masks + (u64)(change.mask == NONE ? 0 : change.mask) * ((a.vocabulary + 31) / 32);
    if (change.keep != NONE || change.mask != NONE) {
        for (u32 token = threadIdx.x; token < a.vocabulary; token += blockDim.x) {
            if (change.keep != NONE) a.raw[(u64)change.keep * a.stride + token] = logits[token];
            if (change.mask != NONE && !(mask[token / 32] >> (token % 32) & 1)) logits[token] = never();
        }
        __syncthreads();
    }
    for (u32 i = threadIdx.x; i < change.banned_count; i += blockDim.x) {
        u32 token = a.banned[change.banned_first + i];
        if (token < a.vocabulary) logits[token] = never();
    }
    __syncthreads();
    add_biases(logits, a.biases + 2 * change.biases_first, change.biases_count, a.vocabulary);
    __syncthreads();
    if (change.prompt_count + change.output_count > 0) add_penalties(a, logits, change);
    __syncthreads();
}

KERNEL(change_logits, (ChangesArguments a)) {
    for (u32 i = blockIdx.x; i < a.changes_count; i += gridDim.x) change_row(a, a.changes[i]);
}
