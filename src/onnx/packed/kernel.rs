//! The arithmetic of attention over blocks: rotation, scores, weights and weighted sums, vectorised by the compiler.
//!
//! Each number of a row is computed by the same operations in the same order, however many rows are computed side by
//! side. So a row has the same bits in every pass.

use std::ops::Range;
use std::ptr;

use multiversion::multiversion;

use super::table::BLOCK_TOKENS;
use crate::rows::kernels::Exp;

/// Tokens whose scores are kept at a time. Maxima and sums are brought up to date once for each span. Spans begin at
/// multiples of their length, so they do not depend on the pass.
pub const SPAN: usize = 8 * BLOCK_TOKENS;

/// Lanes of a sum of weights.
const LANES: usize = 16;

/// Rows of a tile: the sums of so many rows and one block fit into the processor's registers.
const TILE: usize = 4;

/// Which tokens the rows of a query attend to, and where those are.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    /// The addresses of the sequence's blocks.
    pub blocks: *const *mut f32,
    /// Where the keys of the head begin in a block: `[head_size, BLOCK_TOKENS]`.
    pub keys: usize,
    /// Where the values of the head begin in a block: `[BLOCK_TOKENS, head_size]`.
    pub values: usize,
    /// Numbers of a head, a multiple of 8.
    pub head_size: usize,
}

/// The rows of a query: consecutive tokens, and for each one the query heads that share a head of keys.
#[derive(Debug, Clone, Copy)]
pub struct QueryRows {
    /// How many rows.
    pub count: usize,
    /// The first row among all rows of the sequence in the pass.
    pub first: usize,
    /// Rows of a token.
    pub group: usize,
    /// Tokens before the pass.
    pub past: usize,
    /// A token attends to this many tokens, itself included.
    pub window: usize,
    /// Scores are bounded by this, unless it is 0.
    pub softcap: f32,
}

impl QueryRows {
    /// The tokens that a row attends to.
    #[inline(always)]
    fn tokens(&self, row: usize) -> Range<usize> {
        let end = self.past + (self.first + row) / self.group + 1;
        end.saturating_sub(self.window)..end
    }

    /// The tokens that some rows attend to, taken together.
    #[inline(always)]
    fn tokens_of(&self, rows: Range<usize>) -> Range<usize> {
        self.tokens(rows.start).start..self.tokens(rows.end - 1).end
    }
}

/// The buffers of one tile of work, which each thread keeps.
#[derive(Debug, Default)]
pub struct AttentionBuffers {
    /// Queries, rotated and scaled: `[rows, head_size]`.
    pub queries: Vec<f32>,
    /// The sums of values, `[rows, head_size]`.
    pub sums: Vec<f32>,
    /// Scores, then weights: `[rows, SPAN]`.
    weights: Vec<f32>,
    /// For each row the largest score, and the sum of the weights.
    totals: Vec<Total>,
}

/// The largest score of a row so far, and the sum of its weights relative to it.
#[derive(Debug, Clone, Copy)]
struct Total {
    max: f32,
    lanes: [f32; LANES],
}

impl AttentionBuffers {
    /// Make room for `rows` rows. `sink` gives each row a score without a value, if there is one.
    pub fn start(&mut self, rows: usize, head_size: usize, sink: impl Fn(usize) -> Option<f32>) {
        let grow = |buffer: &mut Vec<f32>, len| {
            if buffer.len() < len {
                buffer.resize(len, 0.0);
            }
        };
        grow(&mut self.queries, rows * head_size);
        grow(&mut self.sums, rows * head_size);
        grow(&mut self.weights, rows * SPAN);
        self.sums[..rows * head_size].fill(0.0);
        self.totals.clear();
        self.totals.extend((0..rows).map(|row| {
            let mut total = Total { max: f32::NEG_INFINITY, lanes: [0.0; LANES] };
            if let Some(sink) = sink(row) {
                (total.max, total.lanes[0]) = (sink, 1.0);
            }
            total
        }));
    }
}

/// Attend with the queries in `buffers`: its sums become the weighted means of the values. `following` is what is
/// likely to be read next.
///
/// # Safety
/// The blocks must hold all tokens up to the last row's, and no thread may write this head's part of them meanwhile.
pub unsafe fn attend(keys: &Keys, rows: &QueryRows, following: *const f32, buffers: &mut AttentionBuffers) {
    let size = keys.head_size;
    let all = rows.tokens_of(0..rows.count);
    let mut begin = all.start / SPAN * SPAN;
    while begin < all.end {
        let blocks = begin.max(all.start) / BLOCK_TOKENS..all.end.min(begin + SPAN).div_ceil(BLOCK_TOKENS);
        // SAFETY: the caller says that the blocks exist and are not written.
        let part = |block: usize, at: usize| unsafe {
            std::slice::from_raw_parts((*keys.blocks.add(block)).add(at), size * BLOCK_TOKENS)
        };
        let last = blocks.end - 1;
        for block in blocks.clone() {
            let weights = &mut buffers.weights[block * BLOCK_TOKENS - begin..];
            let next = if block < last { part(block + 1, keys.keys) } else { part(blocks.start, keys.values) };
            let next = next.as_ptr();
            score_block(rows, &buffers.queries, part(block, keys.keys), next, size, block, weights);
        }
        weigh(rows, begin, size, buffers);
        for block in blocks {
            let weights = &buffers.weights[block * BLOCK_TOKENS - begin..];
            let next = match block {
                _ if block < last => part(block + 1, keys.values).as_ptr(),
                _ if begin + SPAN < all.end => part(block + 1, keys.keys).as_ptr(),
                _ => following,
            };
            sum_block(rows, weights, part(block, keys.values), next, size, block, &mut buffers.sums);
        }
        begin += SPAN;
    }
    for (sums, total) in buffers.sums.chunks_exact_mut(size).zip(&buffers.totals) {
        let rate = 1.0 / sum(total.lanes);
        sums.iter_mut().for_each(|sum| *sum *= rate);
    }
}

/// The part of `tokens` that lies in the `len` tokens from `begin` on, counted from there.
#[inline(always)]
fn within(tokens: &Range<usize>, begin: usize, len: usize) -> Range<usize> {
    tokens.start.saturating_sub(begin).min(len)..tokens.end.saturating_sub(begin).min(len)
}

/// Call `$of::<R>` for the rows of a tile, which are `$count`.
macro_rules! tile {
    ($count:expr, $of:ident($($argument:expr),*)) => {
        match $count {
            4 => $of::<4>($($argument),*),
            3 => $of::<3>($($argument),*),
            2 => $of::<2>($($argument),*),
            _ => $of::<1>($($argument),*),
        }
    };
}

/// The scores of all rows that attend to any token of a block.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
fn score_block(
    rows: &QueryRows,
    queries: &[f32],
    keys: &[f32],
    next: *const f32,
    size: usize,
    block: usize,
    weights: &mut [f32],
) {
    let (keys, _) = keys.as_chunks::<BLOCK_TOKENS>();
    for row in (0..rows.count).step_by(TILE) {
        let end = rows.count.min(row + TILE);
        if !within(&rows.tokens_of(row..end), block * BLOCK_TOKENS, BLOCK_TOKENS).is_empty() {
            let (queries, next) = (&queries[row * size..end * size], if row == 0 { next } else { ptr::null() });
            tile!(end - row, score_tile(queries, &keys[..size], next, &mut weights[row * SPAN..]));
        }
    }
}

/// `weights[row][token] = Σ query[row][i] · key[i][token]`.
#[inline(always)]
fn score_tile<const R: usize>(queries: &[f32], keys: &[[f32; BLOCK_TOKENS]], next: *const f32, weights: &mut [f32]) {
    let mut rows = [&queries[..0]; R];
    for row in 0..R {
        rows[row] = &queries[row * keys.len()..][..keys.len()];
    }
    let mut sums = [[0.0f32; BLOCK_TOKENS]; R];
    for (index, key) in keys.iter().enumerate() {
        fetch(next, index);
        for row in 0..R {
            let query = rows[row][index];
            for lane in 0..BLOCK_TOKENS {
                sums[row][lane] = query.mul_add(key[lane], sums[row][lane]);
            }
        }
    }
    for row in 0..R {
        weights[row * SPAN..][..BLOCK_TOKENS].copy_from_slice(&sums[row]);
    }
}

/// Turn the scores of all rows in a span into weights.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
fn weigh(rows: &QueryRows, begin: usize, size: usize, buffers: &mut AttentionBuffers) {
    let exp = Exp::new(1.0);
    for row in 0..rows.count {
        let (weights, sums) = (&mut buffers.weights[row * SPAN..][..SPAN], &mut buffers.sums[row * size..][..size]);
        let tokens = within(&rows.tokens(row), begin, SPAN);
        if !tokens.is_empty() {
            weigh_row(weights, tokens, rows.softcap, exp, &mut buffers.totals[row], sums);
        }
    }
}

/// Turn the scores of a row in a span into weights relative to its largest score so far.
#[inline(always)]
fn weigh_row(weights: &mut [f32], tokens: Range<usize>, softcap: f32, exp: Exp, total: &mut Total, sums: &mut [f32]) {
    let blocks = tokens.start / BLOCK_TOKENS * BLOCK_TOKENS..tokens.end.next_multiple_of(BLOCK_TOKENS);
    if softcap != 0.0 {
        let rate = 1.0 / softcap;
        weights[blocks.clone()].iter_mut().for_each(|score| *score = softcap * tanh(*score * rate));
    }
    // Lanes of other tokens hold anything.
    weights[blocks.start..tokens.start].fill(f32::NEG_INFINITY);
    weights[tokens.end..blocks.end].fill(f32::NEG_INFINITY);
    let (weights, _) = weights[blocks].as_chunks_mut::<LANES>();
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for scores in weights.iter() {
        for lane in 0..LANES {
            maxima[lane] = if scores[lane] > maxima[lane] { scores[lane] } else { maxima[lane] };
        }
    }
    let max = largest(maxima);
    if max > total.max {
        let rate = exp.of(total.max - max);
        total.max = max;
        sums.iter_mut().chain(&mut total.lanes).for_each(|sum| *sum *= rate);
    }
    let mut lanes = total.lanes;
    for scores in weights {
        for lane in 0..LANES {
            let below = scores[lane] - total.max;
            // NaN stays NaN.
            scores[lane] = if below <= 0.0 { exp.of(below) } else { below };
            lanes[lane] += scores[lane];
        }
    }
    total.lanes = lanes;
}

/// Add the weighted values of a block to the sums of all rows.
///
/// Each row takes its own tokens only: others may have values that are not numbers. Rows of a tile take the tokens that
/// they have in common together.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
fn sum_block(
    rows: &QueryRows,
    weights: &[f32],
    values: &[f32],
    next: *const f32,
    size: usize,
    block: usize,
    sums: &mut [f32],
) {
    (0..size).for_each(|index| fetch(next, index));
    let tokens = |row| within(&rows.tokens(row), block * BLOCK_TOKENS, BLOCK_TOKENS);
    for row in (0..rows.count).step_by(TILE) {
        let end = rows.count.min(row + TILE);
        let (first, last) = (tokens(row), tokens(end - 1));
        let common = last.start..first.end.max(last.start);
        let (weights, sums) = (&weights[row * SPAN..], &mut sums[row * size..end * size]);
        if first.start < last.start {
            for each in row..end {
                let (own, at) = (tokens(each), each - row);
                let own = own.start..own.end.min(common.start);
                sum_tile::<1>(&weights[at * SPAN..], values, own, size, &mut sums[at * size..][..size]);
            }
        }
        tile!(end - row, sum_tile(weights, values, common.clone(), size, sums));
        if first.end < last.end {
            for each in row..end {
                let (own, at) = (tokens(each), each - row);
                let own = own.start.max(common.end)..own.end;
                sum_tile::<1>(&weights[at * SPAN..], values, own, size, &mut sums[at * size..][..size]);
            }
        }
    }
}

/// `sums[row] += Σ weights[row][token] · values[token]`.
#[inline(always)]
fn sum_tile<const R: usize>(weights: &[f32], values: &[f32], tokens: Range<usize>, size: usize, sums: &mut [f32]) {
    if tokens.is_empty() {
        return;
    }
    let (wide, mut column) = (size / 32 * 32, 0);
    while column < wide {
        sum_columns::<R, 32>(weights, values, tokens.clone(), size, column, sums);
        column += 32;
    }
    while column < size {
        sum_columns::<R, 8>(weights, values, tokens.clone(), size, column, sums);
        column += 8;
    }
}

#[inline(always)]
fn sum_columns<const R: usize, const L: usize>(
    weights: &[f32],
    values: &[f32],
    tokens: Range<usize>,
    size: usize,
    column: usize,
    sums: &mut [f32],
) {
    let mut totals = [[0.0f32; L]; R];
    for row in 0..R {
        totals[row].copy_from_slice(&sums[row * size + column..][..L]);
    }
    let mut rows = [&weights[..0]; R];
    for row in 0..R {
        rows[row] = &weights[row * SPAN..][tokens.clone()];
    }
    let values = values[tokens.start * size..tokens.end * size].chunks_exact(size);
    for (index, value) in values.enumerate() {
        let value = &value[column..column + L];
        for row in 0..R {
            let weight = rows[row][index];
            for lane in 0..L {
                totals[row][lane] = weight.mul_add(value[lane], totals[row][lane]);
            }
        }
    }
    for row in 0..R {
        sums[row * size + column..][..L].copy_from_slice(&totals[row]);
    }
}

/// Ask for a row of `BLOCK_TOKENS` numbers that are read soon, unless there are none.
///
/// Blocks of many sequences are not in the caches, and are too short for the processor to foresee where they go on. In
/// the second-level cache, more of them can be on their way than in the first.
#[inline(always)]
fn fetch(numbers: *const f32, row: usize) {
    #[cfg(target_arch = "x86_64")]
    if !numbers.is_null() {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let numbers = numbers.wrapping_add(row * BLOCK_TOKENS);
        // SAFETY: a prefetch may name any address, and the program sees nothing of it.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(numbers.cast());
            _mm_prefetch::<_MM_HINT_T1>(numbers.wrapping_add(BLOCK_TOKENS / 2).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (numbers, row);
}

/// The largest lane. NaN is passed over.
#[inline(always)]
fn largest(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = if lanes[half + lane] > lanes[lane] { lanes[half + lane] } else { lanes[lane] };
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn sum(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[half + lane];
        }
        half /= 2;
    }
    lanes[0]
}

/// The hyperbolic tangent, within a few units in the last place: a polynomial near 0, else by an exponential.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut y = -5.704_988_7e-3f32;
    y = y.mul_add(square, 2.063_909e-2);
    y = y.mul_add(square, -5.373_971_5e-2);
    y = y.mul_add(square, 1.333_144_2e-1);
    y = y.mul_add(square, -3.333_328e-1);
    let near = (y * square).mul_add(x, x);
    let power = Exp::new(2.0).of(-x.abs());
    let far = ((1.0 - power) / (1.0 + power)).copysign(x);
    let value = if x.abs() < 0.625 { near } else { far };
    if x.is_nan() { x } else { value }
}

/// Rotate a head by the angles of its position, then multiply it with `scale`. Numbers behind those that have an angle
/// are only multiplied.
///
/// A pair is a number and the one half of the rotated numbers behind it, or two neighbours if `interleaved`.
#[inline(always)]
fn rotate_inline(head: &[f32], cos: &[f32], sin: &[f32], interleaved: bool, scale: f32, out: &mut [f32]) {
    let half = cos.len();
    let sin = &sin[..half];
    let ((head, head_rest), (out, out_rest)) = (head.split_at(2 * half), out.split_at_mut(2 * half));
    if interleaved {
        let (pairs, _) = head.as_chunks::<2>();
        let (out, _) = out.as_chunks_mut::<2>();
        for (((pair, out), &cos), &sin) in pairs.iter().zip(out).zip(cos).zip(sin) {
            *out = [(pair[0] * cos - pair[1] * sin) * scale, (pair[1] * cos + pair[0] * sin) * scale];
        }
    } else {
        let ((left, right), (out_left, out_right)) = (head.split_at(half), out.split_at_mut(half));
        for index in 0..half {
            let (cos, sin) = (cos[index], sin[index]);
            out_left[index] = (left[index] * cos - right[index] * sin) * scale;
            out_right[index] = (right[index] * cos + left[index] * sin) * scale;
        }
    }
    for (out, &number) in out_rest.iter_mut().zip(head_rest) {
        *out = number * scale;
    }
}

/// [`rotate_inline`] for one head.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn rotate(head: &[f32], (cos, sin): (&[f32], &[f32]), interleaved: bool, scale: f32, out: &mut [f32]) {
    rotate_inline(head, cos, sin, interleaved, scale, out);
}
