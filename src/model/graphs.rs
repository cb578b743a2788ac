//! Which graph a GPU runs a pass by.
//!
//! Passes are padded to few sizes, and a captured graph serves all passes of its size. A pass of a size that was not
//! met before would be run, and the next one captured, which takes many times as long as a pass. So a larger graph
//! serves it too, with more padding. A size gets a graph of its own once its padding has cost more than that.

/// Passes of up to this many tokens are captured. The time of larger ones hides that of the launch.
const LARGEST: usize = 2048;

/// Passes with up to so many tokens of each sequence are padded to the next of these numbers. Wider ones have prompts.
const WIDTHS: [usize; 4] = [1, 4, 8, 16];

/// Most graphs that are kept. The one that was used least recently goes first.
pub const MOST_GRAPHS: usize = 256;

/// A graph serves passes of at least half its tokens and rows, and an eighth of its blocks. If it has no more than so
/// many, it serves passes of any number, because few cost little.
const FEW_TOKENS: usize = 64;
const FEW_ROWS: usize = 16;
const FEW_BLOCKS: usize = 16;

/// A graph of wider passes loses as much as so many tokens.
const WIDER: usize = 64;

/// Tokens and rows of padding after which a size is given its own graph. On small models they cost as much time as a
/// capture. Larger ones hide a part of that time behind the read of their weights.
const MOST_PADDING: usize = 4096;

/// Most sizes whose padding is counted.
const MOST_COUNTED: usize = 64;

/// The size of a pass.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PassSize {
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Rows that are wanted, and at least as many as there are sequences.
    pub rows: usize,
    /// Blocks of the longest sequence.
    pub blocks: usize,
    /// Most tokens of a sequence.
    pub widest: usize,
    /// Most rows of a sequence that stay on the GPU.
    pub kept: usize,
    /// Whether these are filtered.
    pub filters: bool,
}

/// What a model takes at most.
#[derive(Debug, Clone, Copy)]
pub struct SizeLimits {
    /// Tokens of a pass.
    pub tokens: usize,
    /// Blocks of a sequence.
    pub blocks: usize,
}

impl PassSize {
    /// The size that a pass of this size is padded to, within the limits.
    pub fn padded(self, most: SizeLimits) -> Self {
        let tokens = padded(self.tokens).min(most.tokens.max(self.tokens));
        let blocks = self.blocks.max(1);
        PassSize {
            tokens,
            rows: padded_rows(self.rows),
            blocks: blocks.next_power_of_two().min(most.blocks.max(blocks)),
            widest: WIDTHS.into_iter().find(|&width| self.widest <= width).unwrap_or(tokens),
            kept: padded(self.kept),
            filters: self.filters,
        }
    }

    /// Whether a pass of this padded size has chunks of prompts.
    fn has_prompts(self) -> bool {
        !WIDTHS.contains(&self.widest)
    }

    /// Whether passes of this padded size are captured.
    pub fn is_captured(self) -> bool {
        self.tokens <= LARGEST
    }

    /// Whether a graph of this size serves a pass of another one.
    pub fn serves(self, other: PassSize) -> bool {
        (other.tokens..=(2 * other.tokens).max(FEW_TOKENS)).contains(&self.tokens)
            && (other.rows..=(2 * other.rows).max(FEW_ROWS)).contains(&self.rows)
            && (other.blocks..=(8 * other.blocks).max(FEW_BLOCKS)).contains(&self.blocks)
            && self.widest >= other.widest
            // Prompts are attended to by other kernels, and rows for the host are copied.
            && self.has_prompts() == other.has_prompts()
            && (self.kept == 0) == (other.kept == 0)
            && self.kept >= other.kept
            && self.filters >= other.filters
    }

    /// What a pass of another size loses by a graph of this one: as much time as so many tokens and rows take.
    fn padding(self, other: PassSize) -> usize {
        let wider = if self.widest > other.widest { WIDER } else { 0 };
        self.tokens - other.tokens + self.rows - other.rows + wider
    }
}

/// Tokens are padded to 1, 2, 3, 4, 6, 8, then to four numbers from a power of two to the next. Each is computed.
pub fn padded(count: usize) -> usize {
    if count <= 8 { padded_rows(count) } else { count.next_multiple_of(1 << (count.ilog2() - 2)) }
}

/// Rows are padded to two numbers from a power of two to the next. They cost less than another graph.
pub fn padded_rows(count: usize) -> usize {
    if count <= 2 { count } else { count.next_multiple_of(1 << (count.ilog2() - 1)) }
}

/// What is kept of a size.
#[derive(Debug)]
pub enum Capture<G> {
    /// A pass was run, so all memory that it needs is there, and the next one can be captured.
    Warm,
    /// What serves all passes of the size.
    Graph(G),
}

/// The graphs of a model.
#[derive(Debug)]
pub struct Graphs<G> {
    entries: Vec<KeptSize<G>>,
    /// Sizes that larger graphs serve, and the padding that this has taken.
    served: Vec<(PassSize, usize)>,
    most: usize,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct KeptSize<G> {
    size: PassSize,
    capture: Capture<G>,
    /// When it was last used.
    used: u64,
}

impl<G> Graphs<G> {
    /// Keeps at most so many.
    pub fn new(most: usize) -> Self {
        Graphs { entries: Vec::with_capacity(most), served: Vec::with_capacity(MOST_COUNTED), most, clock: 0 }
    }

    /// Drop all of them.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.served.clear();
    }

    /// The size that a pass of a padded size is run with: its own, or that of a larger graph.
    pub fn choose(&mut self, size: PassSize) -> PassSize {
        if self.entries.iter().any(|entry| entry.size == size) {
            return size;
        }
        let graphs = self.entries.iter().filter(|entry| matches!(entry.capture, Capture::Graph(_)));
        let serving = graphs.map(|graph| graph.size).filter(|of| of.serves(size));
        let Some(larger) = serving.min_by_key(|of| (of.padding(size), *of)) else { return size };
        let known = self.served.iter().position(|(of, _)| *of == size);
        let before = known.map_or(0, |place| self.served.remove(place).1);
        let padding = before + larger.padding(size).max(1);
        if padding > MOST_PADDING {
            return size;
        }
        if self.served.len() == MOST_COUNTED {
            self.served.remove(0);
        }
        self.served.push((size, padding)); // the one that was needed last comes last
        larger
    }

    /// Take what is kept of a size, to use it and [`Graphs::put`] it back.
    pub fn take(&mut self, size: PassSize) -> Option<Capture<G>> {
        let index = self.entries.iter().position(|entry| entry.size == size)?;
        Some(self.entries.swap_remove(index).capture)
    }

    /// Keep something of a size that has just been used. The one that was used least recently may go for it.
    pub fn put(&mut self, size: PassSize, capture: Capture<G>) {
        if self.entries.len() == self.most
            && let Some(oldest) = (0..self.most).min_by_key(|&index| self.entries[index].used)
        {
            self.entries.swap_remove(oldest);
        }
        self.clock += 1;
        self.entries.push(KeptSize { size, capture, used: self.clock });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SizeLimits = SizeLimits { tokens: usize::MAX, blocks: 8 };

    /// So many sequences with `width` tokens each, of which the last row stays on the GPU.
    fn size(sequences: usize, width: usize) -> PassSize {
        let tokens = sequences * width;
        PassSize { tokens, rows: sequences, blocks: 1, widest: width, kept: 1, filters: false }.padded(LIMITS)
    }

    /// Run a pass. Returns the size of its graph, or `None` if it is run or captured.
    fn run(graphs: &mut Graphs<()>, size: PassSize) -> Option<PassSize> {
        let chosen = graphs.choose(size);
        let before = graphs.take(chosen);
        let has_graph = matches!(before, Some(Capture::Graph(())));
        graphs.put(chosen, if before.is_some() { Capture::Graph(()) } else { Capture::Warm });
        has_graph.then_some(chosen)
    }

    #[test]
    fn sizes_have_room_for_their_passes() {
        for count in 1..3000 {
            let (tokens, rows) = (padded(count), padded_rows(count));
            assert!((count..=count + count / 4 + 1).contains(&tokens), "{count}: {tokens}");
            assert!((count..=count + count / 2).contains(&rows), "{count}: {rows}");
        }
        let pass = PassSize { tokens: 500, rows: 130, blocks: 5, widest: 5, kept: 3, filters: true };
        let padded = PassSize { tokens: 512, rows: 192, blocks: 8, widest: 8, kept: 3, filters: true };
        assert_eq!(pass.padded(LIMITS), padded);
        let limits = SizeLimits { tokens: 505, blocks: 6 };
        assert_eq!(pass.padded(limits), PassSize { tokens: 505, blocks: 6, ..padded });
        assert_eq!(size(1, 40).widest, 40, "a prompt is as wide as the pass");
    }

    #[test]
    fn a_graph_serves_smaller_passes_with_little_padding() {
        let graph = size(16, 8);
        for (passes, serves) in [
            (size(16, 8), true),
            (size(16, 5), true),
            (size(15, 5), true),
            (size(16, 4), true),
            (size(16, 3), false), // too few tokens
            (size(7, 16), false), // too wide
            (size(16, 9), false),
            (PassSize { blocks: 2, ..graph }, false),
            (PassSize { kept: 2, ..graph }, false),
            (PassSize { kept: 0, ..graph }, false),
            (PassSize { filters: true, ..graph }, false),
            (PassSize { rows: 24, ..graph }, false),
            (PassSize { widest: 128, ..graph }, false), // a prompt
        ] {
            assert_eq!(graph.serves(passes), serves, "{passes:?}");
        }
        assert!(size(16, 4).serves(size(1, 1)) && !size(24, 4).serves(size(1, 1)), "64 tokens cost little");
    }

    #[test]
    fn a_pass_is_run_then_captured_and_then_serves_others() {
        let mut graphs = Graphs::new(4);
        assert_eq!([(); 3].map(|()| run(&mut graphs, size(16, 8))), [None, None, Some(size(16, 8))]);
        // A size that is only warm is captured, and serves nobody.
        assert_eq!(run(&mut graphs, size(16, 16)), None);
        assert_eq!(run(&mut graphs, size(16, 9)), None);
        assert_eq!(run(&mut graphs, size(16, 6)), Some(size(16, 8)));
        // 32 tokens of padding each: the 129th has too many.
        let served = (0..).take_while(|_| run(&mut graphs, size(16, 6)) == Some(size(16, 8))).count();
        assert_eq!(served + 1, MOST_PADDING / 32);
        assert_eq!([(); 2].map(|()| run(&mut graphs, size(16, 6))), [None, Some(size(16, 6))]);
        // The least padding wins.
        assert_eq!(run(&mut graphs, size(16, 5)), Some(size(16, 6)));
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut graphs = Graphs::new(2);
        let sizes = [size(1, 1), size(100, 1), size(300, 1)];
        sizes[..2].iter().for_each(|&size| assert_eq!([(); 2].map(|()| run(&mut graphs, size)), [None; 2]));
        assert_eq!(run(&mut graphs, sizes[0]), Some(sizes[0]));
        assert_eq!([(); 3].map(|()| run(&mut graphs, sizes[2])), [None, None, Some(sizes[2])]);
        assert_eq!(run(&mut graphs, sizes[0]), Some(sizes[0]));
        assert_eq!(run(&mut graphs, sizes[1]), None);
        graphs.clear();
        assert_eq!(run(&mut graphs, sizes[0]), None);
    }

    #[test]
    fn many_sizes_are_counted() {
        let mut graphs = Graphs::new(4);
        let large = PassSize { blocks: 512, ..size(1, 1) };
        (0..2).for_each(|_| assert_eq!(run(&mut graphs, large), None));
        for blocks in (64..400).chain(64..400) {
            assert_eq!(run(&mut graphs, PassSize { blocks, ..large }), Some(large));
        }
        assert_eq!(graphs.served.len(), MOST_COUNTED);
    }

    /// Sessions whose models catch up have tokens of many numbers. A graph for each would take too long to capture.
    #[test]
    fn sessions_in_company_have_few_sizes() {
        let mut random = fastrand::Rng::with_seed(1);
        for sessions in [8, 64] {
            let mut sizes = Vec::new();
            for _ in 0..1000 {
                // How many rounds ago a model was last needed, with equal weights of two.
                let widths: Vec<usize> = (0..sessions).map(|_| 1 + random.u32(1..).trailing_zeros() as usize).collect();
                let (tokens, widest) = (widths.iter().sum(), widths.iter().copied().max().unwrap());
                let size = PassSize { tokens, widest, ..size(sessions, 1) }.padded(LIMITS);
                if !sizes.contains(&size) {
                    sizes.push(size);
                }
            }
            assert!(sizes.len() <= 24, "{sessions}: {sizes:?}");
            assert!(size(sessions, 8).is_captured() && !size(1, 3000).is_captured());
        }
    }
}
