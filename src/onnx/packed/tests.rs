//! Packed attention against ONNX Runtime's GroupQueryAttention, and that sequences do not touch each other.

use ort::session::Session;

use super::oracle::{Case, Pool, Reference, common, ours, run, session, theirs};
use super::table::{BLOCK_TOKENS, PassTable};

/// A sequence: its blocks and how many tokens it has.
#[derive(Default)]
struct Sequence {
    blocks: Vec<*mut f32>,
    len: usize,
}

impl Sequence {
    fn grow(&mut self, pool: &mut Pool, width: usize) -> (usize, usize, *const *mut f32) {
        while self.blocks.len() * BLOCK_TOKENS < self.len + width {
            self.blocks.push(pool.take());
        }
        self.len += width;
        (self.len - width, width, self.blocks.as_ptr())
    }
}

fn with_layer(case: &Case) -> Vec<(&'static str, f64)> {
    let mut attributes = case.attributes();
    attributes.push(("layer", 1.0));
    attributes
}

fn our_session(case: &Case, threads: usize) -> Session {
    session(&ours(case, &with_layer(case)), threads).unwrap()
}

fn random(rng: &mut fastrand::Rng, case: &Case, tokens: usize) -> Vec<f32> {
    let mut bell = || (0..4).map(|_| rng.f32() - 0.5).sum::<f32>() * 3.0;
    (0..tokens * case.width()).map(|_| bell()).collect()
}

/// For each pass and sequence: how many tokens it forgets before, and its width.
type Passes<'a> = &'a [&'a [(usize, usize)]];

const PASSES: Passes = &[
    &[(0, 5), (0, 70), (0, 1)],
    &[(0, 1), (0, 1), (0, 33)],
    &[(3, 4), (40, 2), (0, 1)],
    &[(0, 90), (0, 1), (30, 1)],
    &[(1, 1), (32, 3), (0, 60)],
];

fn compare(case: &Case, passes: Passes) {
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut mine, mut other) = (our_session(case, 2), session(&theirs(case), 1).unwrap());
    let mut pool = Pool::new(case, 40);
    let count = passes[0].len();
    let mut sequences: Vec<Sequence> = (0..count).map(|_| Sequence::default()).collect();
    let mut references: Vec<Reference> = (0..count).map(|_| Reference::new(case, 256)).collect();
    for (pass, widths) in passes.iter().enumerate() {
        let tokens = random(&mut rng, case, widths.iter().map(|&(_, width)| width).sum());
        let mut shares = Vec::new();
        for (sequence, &(forgets, width)) in sequences.iter_mut().zip(*widths) {
            sequence.len -= forgets;
            shares.push(sequence.grow(&mut pool, width));
        }
        let found = run(&mut mine, case, &pool.table(&shares), &tokens).unwrap();
        let (mut inputs, mut outputs) = (&tokens[..], &found[..]);
        for (index, &(past, width, _)) in shares.iter().enumerate() {
            let (own, rest) = inputs.split_at(width * case.width());
            let (out, rest_out) = outputs.split_at(width * case.heads * case.head);
            (inputs, outputs) = (rest, rest_out);
            let expected = references[index].run(&mut other, case, past, own);
            let scale = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
            let off = expected.iter().zip(out).map(|(a, b)| (a - b).abs());
            let off = off.fold(0.0, |max: f32, off| if off <= max { max } else { off });
            assert!(off <= 1e-5 * scale, "{case:?}, pass {pass}, sequence {index}: {off} of {scale}");
        }
    }
}

#[test]
fn all_attributes_mean_what_they_do_in_onnx_runtime() {
    let groups = [(4, 2), (6, 2), (3, 3), (8, 1), (5, 1)];
    let (mut count, sizes) = (0, [16, 64, 80, 128, 48]);
    for (packed, rotary, window) in (0..40).map(|index| (index % 2 == 1, index / 2 % 5, [-1, 40, 1, 33][index / 10])) {
        for (softcap, sink) in (0..6).map(|index| ([0.0, 2.5][index % 2], index / 2)) {
            let (heads, kv_heads) = groups[count % 5];
            let head = sizes[count / 5 % 5];
            let case = Case {
                packed,
                angles: usize::next_multiple_of([0, head / 2, head / 2, head / 4, head / 4][rotary], 8),
                interleaved: rotary == 2 || rotary == 4,
                window,
                softcap,
                smooth: sink == 1,
                sinks: sink == 2,
                scale: [0.0, 0.2][count % 2],
                positions: 256,
                ..Case::plain(heads, kv_heads, head)
            };
            compare(&case, PASSES);
            count += 1;
        }
    }
}

#[test]
fn long_sequences_agree() {
    for (heads, kv_heads, window) in [(6, 2, -1), (2, 2, -1), (4, 1, 700)] {
        let case = Case { window, ..Case::plain(heads, kv_heads, 64) };
        let mut rng = fastrand::Rng::with_seed(3);
        let (mut mine, mut other) = (our_session(&case, 2), session(&theirs(&case), 1).unwrap());
        let (mut pool, mut sequence) = (Pool::new(&case, 80), Sequence::default());
        let mut reference = Reference::new(&case, 2048);
        for width in [1000, 1, 256, 3, 517] {
            let tokens = random(&mut rng, &case, width);
            let share = sequence.grow(&mut pool, width);
            let found = run(&mut mine, &case, &pool.table(&[share]), &tokens).unwrap();
            let expected = reference.run(&mut other, &case, share.0, &tokens);
            let scale = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
            assert!(expected.iter().zip(&found).all(|(a, b)| (a - b).abs() <= 1e-5 * scale), "{case:?} {width}");
        }
    }
}

/// The rows of one sequence, fed in the given widths, with others before and behind it.
fn alone_or_not(case: &Case, tokens: &[f32], widths: &[usize], others: usize, threads: usize, other: f32) -> Vec<u32> {
    let (mut mine, mut pool) = (our_session(case, threads), Pool::new(case, 120));
    let mut rng = fastrand::Rng::with_seed(widths.len() as u64);
    let mut sequences: Vec<Sequence> = (0..=2 * others).map(|_| Sequence::default()).collect();
    let (mut out, mut done) = (Vec::new(), 0);
    for &width in widths {
        let (mut shares, mut inputs) = (Vec::new(), Vec::new());
        for (index, sequence) in sequences.iter_mut().enumerate() {
            if index == others {
                shares.push(sequence.grow(&mut pool, width));
                inputs.extend_from_slice(&tokens[done * case.width()..][..width * case.width()]);
            } else {
                let width = rng.usize(1..10);
                shares.push(sequence.grow(&mut pool, width));
                inputs.extend(random(&mut rng, case, width).iter().map(|number| number * other));
            }
        }
        let before: usize = shares[..others].iter().map(|share| share.1).sum();
        let found = run(&mut mine, case, &pool.table(&shares), &inputs).unwrap();
        let row = case.heads * case.head;
        out.extend(found[before * row..][..width * row].iter().map(|number| number.to_bits()));
        done += width;
    }
    out
}

#[test]
fn a_sequence_has_the_same_bits_in_every_company_and_width() {
    for case in [
        Case { window: 300, softcap: 3.0, ..Case::plain(6, 2, 64) },
        Case { packed: true, ..Case::plain(3, 3, 80) },
        Case { window: 21, sinks: true, ..Case::plain(2, 2, 24) },
        Case::plain(7, 1, 128),
    ] {
        let mut rng = fastrand::Rng::with_seed(5);
        let tokens = random(&mut rng, &case, 600);
        let alone = alone_or_not(&case, &tokens, &[600], 0, 1, 1.0);
        assert!(alone.iter().all(|&bits| f32::from_bits(bits).is_finite()));
        let narrow: Vec<usize> = (0..).map(|index| [1, 2, 5, 3][index % 4]).take(200).collect();
        let all = 600 - narrow.iter().sum::<usize>();
        let narrow: Vec<usize> = narrow.into_iter().chain([all]).collect();
        for (widths, others, threads) in
            [(&[600][..], 0, 2), (&[300, 300], 2, 1), (&[1, 31, 200, 7, 361], 2, 4), (&narrow[..], 1, 3)]
        {
            let found = alone_or_not(&case, &tokens, widths, others, threads, 1.0);
            assert!(found == alone, "{case:?}, {} widths, {others} others, {threads} threads", widths.len());
        }
        let among_nan = alone_or_not(&case, &tokens, &[1, 31, 200, 7, 361], 1, 2, f32::NAN);
        assert!(among_nan == alone, "{case:?} among sequences that are not numbers");
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    let case = Case::plain(6, 2, 64);
    let mut rng = fastrand::Rng::with_seed(5);
    let mut tokens = random(&mut rng, &case, 50);
    for column in [0, 7 * 64, 9 * 64] {
        // A query, a key and a value of the token 20, with bits that are unlike those of the usual NaN.
        let old = std::mem::replace(&mut tokens[20 * case.width() + column], f32::from_bits(0x7fc0_0001));
        let out = alone_or_not(&case, &tokens, &[50], 0, 1, 1.0);
        let bad = |token: usize| out[token * 6 * 64..][..6 * 64].iter().any(|&bits| f32::from_bits(bits).is_nan());
        assert!((0..20).all(|token| !bad(token)), "{column}");
        assert!(bad(20), "{column}");
        assert!(column == 0 || (20..50).all(bad), "{column}");
        tokens[20 * case.width() + column] = old;
    }
}

fn failure(case: &Case, change: impl Fn(&mut PassTable)) -> String {
    let mut pool = Pool::new(case, 10);
    let mut sequence = Sequence::default();
    let shares = [sequence.grow(&mut pool, 3)];
    let mut table = pool.table(&shares);
    change(&mut table);
    let tokens = random(&mut fastrand::Rng::with_seed(5), case, 3);
    run(&mut our_session(case, 1), case, &table, &tokens).unwrap_err().to_string()
}

#[test]
fn tables_that_do_not_fit_are_errors() {
    let case = Case::plain(6, 2, 64);
    let says = |wanted: &str, change: &dyn Fn(&mut PassTable)| {
        let error = failure(&case, change);
        assert!(error.contains(wanted), "{error}");
    };
    says("this is layer 1", &|table| table.layers.truncate(1));
    says("3 tokens, the pass 4", &|table| table.tokens = 4);
    says("heads of keys", &|table| table.layers[1].kv_heads = 3);
    says("heads of 32", &|table| table.layers[1].head_size = 32);
    says("does not begin at 0", &|table| table.shares[0].first = 1);
    says("is empty", &|table| table.shares[0].width = 0);
    says("no blocks", &|table| table.shares[0].blocks = std::ptr::null());
    says("have 2 tokens", &|table| table.shares[0].width = 2);
    says("reaches position 2304", &|table| table.shares[0].past = 2302);
    let mut inputs = common(&case, &random(&mut fastrand::Rng::with_seed(5), &case, 3));
    inputs.push(("table".into(), ort::value::Tensor::from_array(([1], vec![0i64])).unwrap().into()));
    let error = our_session(&case, 1).run(inputs).unwrap_err().to_string();
    assert!(error.contains("address of the table is 0"), "{error}");
}

#[test]
fn attributes_that_do_not_fit_are_errors() {
    let case = Case::plain(6, 2, 64);
    let says = |wanted: &str, attributes: &[(&str, f64)]| {
        let error = session(&ours(&case, attributes), 1).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(wanted), "{error}");
    };
    says("layer is missing", &case.attributes());
    says("num_heads is missing", &[("layer", 0.0)]);
    says("not a multiple", &[("layer", 0.0), ("num_heads", 6.0), ("kv_num_heads", 4.0)]);
    let window = Case { window: -2, ..case };
    says("local_window_size is -2", &with_layer(&window));
}
