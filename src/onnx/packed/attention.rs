//! Attention of a packed pass: each sequence attends to its own tokens, whose keys and values are in blocks.

use std::cell::RefCell;
use std::ptr;

use super::kernel::{self, AttentionBuffers, Keys, QueryRows};
use super::table::{BLOCK_TOKENS, LayerPart, PassTable, Share};

/// Rows of a work item. More rows read keys and values less often, fewer spread better over threads.
const ROWS: usize = 32;

/// Multiplications of a pass and layer below which starting other threads costs more than they save.
const WORTH_THREADS: usize = 200_000;

/// What an attention operator computes, as the attributes of GroupQueryAttention say it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Heads of queries, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Scores are multiplied with this; 0 stands for one over the square root of the head's size.
    pub scale: f32,
    /// Scores are bounded by this, unless it is 0.
    pub softcap: f32,
    /// A token attends to this many tokens, itself included; `usize::MAX` without a window.
    pub window: usize,
    /// Whether queries and keys are rotated by their positions.
    pub rotates: bool,
    /// Whether neighbours are rotated as pairs.
    pub interleaved: bool,
    /// Whether each row has a further score of 0 without a value, unless the inputs have sinks.
    pub smooth: bool,
}

/// The inputs of an attention operator. Rows of tokens may be longer than what is used of them.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Heads of queries for each token.
    pub query: Strided<'a>,
    /// Heads of keys for each token.
    pub key: Strided<'a>,
    /// Heads of values for each token.
    pub value: Strided<'a>,
    /// Cosines and sines, `[positions, angles]`, and the number of angles. Needed if the operator rotates.
    pub angles: Option<(&'a [f32], &'a [f32], usize)>,
    /// For each query head the score of its sink.
    pub sinks: Option<&'a [f32]>,
}

/// Rows of numbers that begin `stride` apart.
#[derive(Debug, Clone, Copy)]
pub struct Strided<'a> {
    /// The first row and all that follows.
    pub data: &'a [f32],
    /// From the beginning of a row to the next.
    pub stride: usize,
}

impl<'a> Strided<'a> {
    fn head(&self, token: usize, head: usize, size: usize) -> &'a [f32] {
        &self.data[token * self.stride + head * size..][..size]
    }
}

/// A part of the work: some rows of one head of keys and one sequence.
#[derive(Debug, Clone, Copy)]
struct Item {
    share: u32,
    kv_head: u32,
    first: u32,
}

/// The work of a layer, in the order in which it may be done.
#[derive(Debug, Default)]
pub struct LayerWork {
    /// Sequences of more rows than an item's: their keys and values are written before all else.
    appends: Vec<Item>,
    items: Vec<Item>,
    multiplications: usize,
}

/// One layer of a pass.
struct Layer<'a> {
    attention: &'a Attention,
    part: LayerPart,
    shares: &'a [Share],
    inputs: Inputs<'a>,
    out: *mut f32,
}

// SAFETY: work items of different indices write different heads and rows of blocks and output, and what one reads of
// them no other writes. Everything else is only read.
unsafe impl Sync for Layer<'_> {}

/// Calls a function for all numbers below the first argument, perhaps on several threads, and returns when all are
/// done.
pub type Spread<'a> = &'a dyn Fn(usize, &(dyn Fn(usize) + Sync)) -> Result<(), String>;

thread_local! {
    static BUFFERS: RefCell<AttentionBuffers> = RefCell::default();
}

impl Attention {
    /// Write the keys and values of a pass into its blocks, and attend.
    ///
    /// # Errors
    /// If table, inputs and output do not fit together, or `spread` fails.
    ///
    /// # Safety
    /// The shares' blocks must be as [`Share`] says, initialised, with room for the part that the layer has in them. No
    /// other thread may use that part meanwhile.
    pub unsafe fn run(
        &self,
        table: &PassTable,
        layer: usize,
        inputs: &Inputs,
        out: &mut [f32],
        work: &mut LayerWork,
        spread: Spread,
    ) -> Result<(), String> {
        let part = self.check(table, layer, inputs, out)?;
        let out = out.as_mut_ptr();
        let layer = Layer { attention: self, part, shares: &table.shares, inputs: *inputs, out };
        work.plan(&table.shares, self, part.head_size);
        let alone: Spread = &|count, each| {
            (0..count).for_each(each);
            Ok(())
        };
        let spread = |count| if count > 1 && work.multiplications >= WORTH_THREADS { spread } else { alone };
        // SAFETY: as for this function. Items of sequences with several are attended once all keys are written.
        unsafe {
            if !work.appends.is_empty() {
                spread(work.appends.len())(work.appends.len(), &|index| layer.append(&work.appends[index]))?;
            }
            spread(work.items.len())(work.items.len(), &|index| {
                let following = work.items.get(index + 1).map_or(ptr::null(), |item| layer.first_keys(item));
                BUFFERS.with_borrow_mut(|buffers| layer.attend(&work.items[index], following, buffers));
            })
        }
    }

    /// Where the layer keeps its part of a block, if everything fits together.
    fn check(&self, table: &PassTable, layer: usize, inputs: &Inputs, out: &[f32]) -> Result<LayerPart, String> {
        let Some(&part) = table.layers.get(layer) else {
            return Err(format!("the pass has {} layers, but this is layer {layer}", table.layers.len()));
        };
        let (tokens, size) = (table.tokens, part.head_size);
        if part.kv_heads != self.kv_heads {
            return Err(format!("the blocks have {} heads of keys, the operator {}", part.kv_heads, self.kv_heads));
        }
        if out.len() != tokens * self.heads * size {
            return Err(format!(
                "the pass has {tokens} tokens and heads of {size}, but the output {} numbers for {} heads",
                out.len(),
                self.heads
            ));
        }
        let mut next = 0;
        for (index, share) in table.shares.iter().enumerate() {
            if share.first != next || share.width == 0 || share.blocks.is_null() {
                return Err(format!("share {index} of the pass is empty, has no blocks, or does not begin at {next}"));
            }
            next += share.width;
            match inputs.angles {
                Some((cos, _, angles)) if self.rotates && (share.past + share.width) * angles > cos.len() => {
                    return Err(format!(
                        "share {index} reaches position {}, but the table of cosines has {} positions",
                        share.past + share.width - 1,
                        cos.len() / angles
                    ));
                }
                _ => {}
            }
        }
        if next != tokens {
            return Err(format!("the shares of the pass have {next} tokens, the pass {tokens}"));
        }
        Ok(part)
    }
}

impl LayerWork {
    fn plan(&mut self, shares: &[Share], attention: &Attention, head_size: usize) {
        self.appends.clear();
        self.items.clear();
        self.multiplications = 0;
        for (index, share) in shares.iter().enumerate() {
            let rows = share.width * (attention.heads / attention.kv_heads);
            let keys = (share.past + share.width).min(attention.window);
            self.multiplications += 2 * share.width * attention.heads * keys * head_size;
            for kv_head in 0..attention.kv_heads as u32 {
                let item = |first: usize| Item { share: index as u32, kv_head, first: first as u32 };
                if rows > ROWS {
                    self.appends.push(item(0));
                }
                self.items.extend((0..rows).step_by(ROWS).map(item));
            }
        }
    }
}

impl Layer<'_> {
    fn keys(&self, item: &Item) -> Keys {
        let (part, kv_head) = (&self.part, item.kv_head as usize);
        let head = kv_head * part.head_size * BLOCK_TOKENS;
        Keys {
            blocks: self.shares[item.share as usize].blocks,
            keys: part.keys + head,
            values: part.values + head,
            head_size: part.head_size,
        }
    }

    /// Where the keys are that an item reads first.
    unsafe fn first_keys(&self, item: &Item) -> *const f32 {
        let (share, keys) = (&self.shares[item.share as usize], self.keys(item));
        let group = self.attention.heads / self.attention.kv_heads;
        let end = share.past + item.first as usize / group + 1;
        let block = end.saturating_sub(self.attention.window) / BLOCK_TOKENS;
        // SAFETY: the blocks are as `Share` says.
        unsafe { (*keys.blocks.add(block)).add(keys.keys) }
    }

    /// Cosines and sines of a position; none if nothing is rotated.
    fn angles(&self, position: usize) -> (&[f32], &[f32]) {
        match self.inputs.angles {
            Some((cos, sin, angles)) if self.attention.rotates => {
                (&cos[position * angles..][..angles], &sin[position * angles..][..angles])
            }
            _ => (&[], &[]),
        }
    }

    /// Write the new keys and values of a sequence and head.
    unsafe fn append(&self, item: &Item) {
        BUFFERS.with_borrow_mut(|buffers| {
            // SAFETY: as for this function.
            unsafe { self.append_with(item, &mut buffers.queries) }
        });
    }

    /// Write the new keys and values of a sequence and head. Keys are rotated in `buffer`.
    unsafe fn append_with(&self, item: &Item, buffer: &mut Vec<f32>) {
        let (share, keys, size) = (&self.shares[item.share as usize], self.keys(item), self.part.head_size);
        if buffer.len() < BLOCK_TOKENS * size {
            buffer.resize(BLOCK_TOKENS * size, 0.0);
        }
        let mut done = 0;
        while done < share.width {
            let (block, slot) = ((share.past + done) / BLOCK_TOKENS, (share.past + done) % BLOCK_TOKENS);
            let count = (BLOCK_TOKENS - slot).min(share.width - done);
            for index in 0..count {
                let token = share.first + done + index;
                let key = self.inputs.key.head(token, item.kv_head as usize, size);
                let out = &mut buffer[index * size..][..size];
                kernel::rotate(key, self.angles(share.past + done + index), self.attention.interleaved, 1.0, out);
            }
            // SAFETY: the blocks are as `Share` says, and no other item writes or reads this head's part of them.
            unsafe {
                let block = *keys.blocks.add(block);
                for number in 0..size {
                    let out = block.add(keys.keys + number * BLOCK_TOKENS + slot);
                    (0..count).for_each(|index| *out.add(index) = buffer[index * size + number]);
                }
                for index in 0..count {
                    let token = share.first + done + index;
                    let value = self.inputs.value.head(token, item.kv_head as usize, size);
                    block.add(keys.values + (slot + index) * size).copy_from_nonoverlapping(value.as_ptr(), size);
                }
            }
            done += count;
        }
    }

    /// Attend with the rows of an item. If they are all of their sequence and head, write its keys and values before.
    unsafe fn attend(&self, item: &Item, following: *const f32, buffers: &mut AttentionBuffers) {
        let (share, attention, size) = (&self.shares[item.share as usize], self.attention, self.part.head_size);
        let group = attention.heads / attention.kv_heads;
        let (first, all) = (item.first as usize, share.width * group);
        if all <= ROWS {
            // SAFETY: as for this function.
            unsafe { self.append_with(item, &mut buffers.queries) };
        }
        let rows = QueryRows {
            count: ROWS.min(all - first),
            first,
            group,
            past: share.past,
            window: attention.window,
            softcap: attention.softcap,
        };
        let of = |row: usize| ((first + row) / group, item.kv_head as usize * group + (first + row) % group);
        let sink = |row| match self.inputs.sinks {
            Some(sinks) => Some(sinks[of(row).1]),
            None => attention.smooth.then_some(0.0),
        };
        buffers.start(rows.count, size, sink);
        let scale = if attention.scale == 0.0 { 1.0 / (size as f32).sqrt() } else { attention.scale };
        for row in 0..rows.count {
            let (token, head) = of(row);
            let query = self.inputs.query.head(share.first + token, head, size);
            let out = &mut buffers.queries[row * size..][..size];
            kernel::rotate(query, self.angles(share.past + token), attention.interleaved, scale, out);
        }
        // SAFETY: all keys and values of the sequence and head are written, by this item or before all items.
        unsafe { kernel::attend(&self.keys(item), &rows, following, buffers) };
        for row in 0..rows.count {
            let (token, head) = of(row);
            let out = ((share.first + token) * attention.heads + head) * size;
            // SAFETY: `check` has compared the output's length, and no other item writes this row.
            unsafe { self.out.add(out).copy_from_nonoverlapping(buffers.sums[row * size..].as_ptr(), size) };
        }
    }
}
