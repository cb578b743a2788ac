//! Models that are tables. Every row that a short sequence can reach is computed once, so a draw costs microseconds.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use cos::error::Result;
use cos::model::{Cancel, Interrupt, Model, Pass, Report, Sequence};
use cos::rows::Row;

use crate::common::World;

/// The contexts after a prompt, numbered level by level. A number is the index of a row.
#[derive(Debug, Clone, Copy)]
pub struct Tree {
    pub vocab: usize,
    pub depth: usize,
}

impl Tree {
    pub const ROOT: usize = 0;

    /// The number of a context followed by one more token.
    pub fn child(self, node: usize, token: i32) -> usize {
        node * self.vocab + token as usize + 1
    }

    pub fn node(self, tokens: &[i32]) -> usize {
        tokens.iter().fold(Self::ROOT, |node, &token| self.child(node, token))
    }

    /// The number of contexts with up to `depth` tokens.
    pub fn nodes(self) -> usize {
        (0..=self.depth as u32).map(|level| self.vocab.pow(level)).sum()
    }

    /// Every context, shorter ones first.
    pub fn contexts(self) -> Vec<Vec<i32>> {
        let mut contexts = vec![Vec::new()];
        for node in 1..self.nodes() {
            let mut context: Vec<i32> = contexts[(node - 1) / self.vocab].clone();
            context.push(((node - 1) % self.vocab) as i32);
            contexts.push(context);
        }
        contexts
    }
}

/// Called before each pass. It may cancel the pass or let it fail.
pub type Stop = dyn Fn(&Cancel) -> bool + Send + Sync;

/// A model that looks up its rows by the tokens in its sequence.
pub struct Table {
    tree: Tree,
    prompt: usize,
    context_length: usize,
    rows: Arc<[f32]>,
    stop: Option<Arc<Stop>>,
}

impl Table {
    /// The model of a world after a prompt.
    pub fn new(world: World, model: usize, prompt: &[i32], tree: Tree) -> Self {
        let row = |context: Vec<i32>| world.logits(model, &[prompt, &context].concat(), tree.vocab);
        let rows = tree.contexts().into_iter().flat_map(row).collect();
        Table { tree, prompt: prompt.len(), context_length: 1 << 20, rows, stop: None }
    }

    pub fn with_context_length(mut self, tokens: usize) -> Self {
        self.context_length = tokens;
        self
    }

    /// The same model with a function that may stop its passes.
    pub fn with_stop(mut self, stop: Arc<Stop>) -> Self {
        self.stop = Some(stop);
        self
    }
}

struct TableSequence {
    /// The number of the context, for each number of tokens in the sequence.
    nodes: Vec<usize>,
    rows: Arc<[f32]>,
    vocab: usize,
    cancel: Arc<Cancel>,
    passes: usize,
}

impl Sequence for TableSequence {
    fn len(&self) -> usize {
        self.nodes.len() - 1
    }

    fn truncate(&mut self, len: usize) {
        self.nodes.truncate(len + 1);
    }

    fn row(&self, position: usize) -> Row<'_> {
        let start = self.nodes[position] * self.vocab;
        Row::Host(&self.rows[start..start + self.vocab])
    }
}

impl Model for Table {
    fn name(&self) -> &str {
        "table"
    }

    fn vocab_size(&self) -> usize {
        self.tree.vocab
    }

    fn context_length(&self) -> usize {
        self.context_length
    }

    fn max_pass(&self) -> usize {
        8
    }

    fn cost(&self) -> u64 {
        1
    }

    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        let mut nodes = Vec::with_capacity(self.prompt + self.tree.depth + 1);
        nodes.push(Tree::ROOT);
        Ok(Box::new(TableSequence {
            nodes,
            rows: self.rows.clone(),
            vocab: self.tree.vocab,
            cancel: cancel.clone(),
            passes: 0,
        }))
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt> {
        for pass in batch {
            let sequence: &mut TableSequence =
                (pass.sequence as &mut dyn Any).downcast_mut().expect("a sequence of another model");
            sequence.passes += 1;
            assert!(sequence.passes < 1000, "passes without an end");
            let stopped = self.stop.as_ref().is_some_and(|stop| stop(&sequence.cancel));
            if stopped || sequence.cancel.is_requested() {
                return Err(Interrupt::Cancelled);
            }
            for &token in pass.tokens {
                let node = match sequence.len() < self.prompt {
                    true => Tree::ROOT,
                    false => self.tree.child(*sequence.nodes.last().expect("never empty"), token),
                };
                assert!(node < self.tree.nodes(), "a context that no row was made for");
                sequence.nodes.push(node);
            }
        }
        Ok(Report { elapsed: Duration::ZERO, is_usual: true })
    }
}
