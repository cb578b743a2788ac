//! `auto` on models whose time and agreement are made up: it comes near the best fixed plan, and never far below
//! standard.
//!
//! Time is pretended, a second and more a pass, so nothing here depends on the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::PROMPT;
use cos::config::Combine;
use cos::control::Controls;
use cos::decode::chance::CounterRng;
use cos::decode::combine::Combination;
use cos::decode::decoder::{Alternatives, Settings};
use cos::decode::policy::{Plan, Policy, Request, Strategy, Targets};
use cos::engine::Engine;
use cos::engine::drive::Driver;
use cos::engine::participant::Participant;
use cos::engine::session::{Options, Session, State};
use cos::learn::estimates::Estimates;
use cos::model::Cancel;
use cos::model::scripted::Scripted;
use cos::plan::forecast::{Forecast, LONGEST, Task};
use cos::plan::session::{PlanTimes, Planning, RoundReport};
use cos::plan::shared::SharedPlanning;
use cos::plan::{choices::Choices, planner::Planner};
use cos::rows::Sampler;
use parking_lot::Mutex;

const VOCAB: usize = 11;

fn hash(context: &[i32], salt: u64) -> u64 {
    let mix = |state: u64, word: u64| (state ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let state =
        context.iter().rev().take(6).fold(mix(salt, context.len() as u64), |state, &token| mix(state, token as u64));
    mix(mix(state, 1), 2)
}

/// A model that is sure of its next token. With the rate that `agreement` has at a position it is the common one.
fn model(
    salt: u64,
    agreement: impl Fn(usize) -> f64 + Send + Sync + 'static,
    seconds: impl Fn(usize, u64) -> f64 + Send + Sync + 'static,
) -> Participant {
    Arc::new(scripted(salt, agreement, seconds)).into()
}

fn scripted(
    salt: u64,
    agreement: impl Fn(usize) -> f64 + Send + Sync + 'static,
    seconds: impl Fn(usize, u64) -> f64 + Send + Sync + 'static,
) -> Scripted {
    let script = move |context: &[i32], row: &mut [f32]| {
        let agrees = (hash(context, salt) >> 11) as f64 / (1u64 << 53) as f64 <= agreement(context.len());
        let common = hash(context, 0) % VOCAB as u64;
        let other = (common + 1 + salt % (VOCAB as u64 - 1)) % VOCAB as u64;
        row[if agrees { common } else { other } as usize] = 40.0;
        Ok(())
    };
    let time = move |width, passes| Duration::from_secs_f64(seconds(width, passes));
    Scripted::new(VOCAB, script).with_pass_times(time)
}

/// A pass takes `first` and a tenth more for each further position.
fn usual(first: f64) -> impl Fn(usize, u64) -> f64 + Copy {
    move |width, _| first * (1.0 + 0.1 * (width as f64 - 1.0))
}

struct World {
    models: Vec<Participant>,
    combination: Combination,
    temperature: f32,
    /// Seconds beside the models for each proposal that is tested.
    beside: f64,
}

impl World {
    fn decoder(&self, plan: Plan, seed: u64, tokens: usize) -> Driver<CounterRng> {
        let cancel = Arc::new(Cancel::default());
        let settings = Settings {
            combination: self.combination.clone(),
            sampler: Sampler::new(self.temperature, 0, 0.0, 0.0).unwrap(),
            weigher: None,
            controls: Controls::default(),
            stop_tokens: Vec::new(),
            max_tokens: tokens,
            log_probabilities: false,
            alternatives: Alternatives::default(),
        };
        let mut decoder = Driver::new(&self.models, &cancel, settings, plan, CounterRng::new(seed)).unwrap();
        // Other prompts are other texts.
        decoder.prompt(&[&PROMPT[..], &[seed as i32 % VOCAB as i32; 2]].concat()).unwrap();
        decoder
    }

    fn request<'a>(&'a self, lengths: Option<&'a [i32]>, targets: Option<Targets>, costs: &'a [u64]) -> Request<'a> {
        Request {
            strategy: Strategy::Auto,
            targets,
            lengths,
            combination: &self.combination,
            greedy: self.temperature == 0.0,
            log_probabilities: false,
            costs,
        }
    }

    /// Pretended seconds for each token by a fixed plan.
    fn fixed(&self, plan: &Plan, tokens: usize) -> f64 {
        let mut decoder = self.decoder(plan.clone(), 1, tokens);
        while decoder.round().unwrap().1.is_none() {}
        decoder.elapsed().as_secs_f64() / tokens as f64
    }

    fn standard(&self, tokens: usize) -> f64 {
        self.fixed(&Plan::of(Policy::Standard, Targets::Combined), tokens)
    }

    /// The same by `auto`; and what it did.
    fn auto(&self, shared: &Mutex<SharedPlanning>, tokens: usize) -> (f64, Planning) {
        self.planned(shared, tokens, None, None, |_| ())
    }

    fn planned(
        &self,
        shared: &Mutex<SharedPlanning>,
        tokens: usize,
        lengths: Option<&[i32]>,
        targets: Option<Targets>,
        mut each: impl FnMut(&Plan),
    ) -> (f64, Planning) {
        let costs = vec![1; self.models.len()];
        let request = self.request(lengths, targets, &costs);
        let scores: Vec<bool> = self.models.iter().map(|each| each.model().is_some()).collect();
        let pass_times: Vec<_> = self.models.iter().map(Participant::pass_times).collect();
        let choices = Choices::new(&request, &scores);
        let plan = Plan::new(&request).unwrap();
        let sampler = Sampler::new(self.temperature, 0, 0.0, 0.0).unwrap();
        let (mut planning, estimates) =
            Planning::new(&shared.lock(), &pass_times, &self.combination, &sampler, choices, plan);
        let mut decoder = self.decoder(planning.plan().clone(), 1, tokens);
        decoder.observe(estimates);
        let start = decoder.committed().len();
        let mut beside = 0.0;
        loop {
            let (before, elapsed) = (decoder.committed().len(), decoder.elapsed());
            let tested = decoder.counters().tested;
            each(decoder.plan());
            let open = decoder.round().unwrap().1.is_none();
            let models = decoder.elapsed() - elapsed;
            let more = self.beside * (decoder.counters().tested - tested) as f64;
            let total = models + Duration::from_secs_f64(more);
            beside += more;
            let tokens = decoder.committed().len() - before;
            let round = RoundReport {
                tokens,
                total,
                models,
                stood_aside: false,
                is_usual: before > start && decoder.is_usual(),
                open,
                company: 1,
            };
            if let Some(model) = planning.after_round(shared, &mut decoder, round, &|| Duration::ZERO) {
                let before = decoder.elapsed();
                decoder.probe(model).unwrap();
                planning.probed(shared, (decoder.elapsed() - before).as_secs_f64());
            }
            if !open {
                let seconds = decoder.elapsed().as_secs_f64() + beside;
                return (seconds / (decoder.committed().len() - start) as f64, planning);
            }
        }
    }

    /// The best of many fixed plans.
    fn best(&self, tokens: usize) -> (f64, Plan) {
        let models = self.models.len();
        let routable = matches!(self.combination, Combination::Mixture { .. }) && self.temperature > 0.0;
        let mut plans = Vec::new();
        for targets in [Targets::Combined, Targets::Routed].into_iter().take(1 + usize::from(routable)) {
            plans.push(Plan::of(Policy::Standard, targets));
            for length in [1, 2, 3, 4, 5, 6, 8, 12] {
                for proposer in 0..models {
                    plans.push(Plan::of(Policy::Speculative { proposer, length }, targets));
                }
            }
            for lengths in
                [[1, 1, 1], [2, 1, 1], [1, 2, 1], [1, 1, 2], [3, 1, 1], [1, 3, 1], [1, 5, 1], [2, 2, 1], [0, 1, 1]]
            {
                let order = (0..models).collect();
                plans.push(Plan::of(Policy::Cos { lengths: lengths[..models].to_vec(), order }, targets));
            }
        }
        let all = plans.into_iter().map(|plan| (self.fixed(&plan, tokens), plan));
        all.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
    }
}

fn target_and_drafter(agreement: f64, cost: f64, temperature: f32) -> World {
    World {
        models: vec![model(1, |_| 1.0, usual(2.0)), model(2, move |_| agreement, usual(2.0 * cost))],
        combination: Combination::target(2, 0).unwrap(),
        temperature,
        beside: 0.0,
    }
}

fn mixture(agreements: &[f64], temperature: f32) -> World {
    let models = agreements.len();
    World {
        models: (0..models)
            .map(|k| {
                let agreement = agreements[k];
                model(k as u64 + 1, move |_| agreement, usual(2.0))
            })
            .collect(),
        combination: Combination::mixture(&vec![1.0 / models as f32; models]).unwrap(),
        temperature,
        beside: 0.0,
    }
}

fn contrastive(agreement: f64, cost: f64, temperature: f32) -> World {
    World {
        models: vec![model(1, |_| 1.0, usual(2.0)), model(2, move |_| agreement, usual(2.0 * cost))],
        combination: Combination::contrastive(2, 0.1, 0.0).unwrap(),
        temperature,
        beside: 0.0,
    }
}

/// Pairs that gain much, little and nothing: at most 3 % slower than the best of many fixed plans, once it knows them.
#[test]
fn auto_comes_near_the_best_fixed_plan() {
    for temperature in [0.0, 1.0] {
        for (name, world) in [
            ("a good drafter", target_and_drafter(0.9, 0.05, temperature)),
            ("a fair drafter", target_and_drafter(0.6, 0.1, temperature)),
            ("a dear drafter", target_and_drafter(0.8, 0.6, temperature)),
            ("two that agree", mixture(&[0.9, 0.9], temperature)),
            ("three that agree", mixture(&[0.9, 0.8, 0.7], temperature)),
            ("contrastive", contrastive(0.8, 0.07, temperature)),
            ("contrastive, dear", contrastive(0.7, 0.8, temperature)),
        ] {
            let shared = Mutex::default();
            let (first, _) = world.auto(&shared, 512);
            let (auto, planning) = world.auto(&shared, 3000);
            let (best, plan) = world.best(3000);
            println!(
                "{name} at {temperature}: best {best:.3} by {plan:?}, first {first:.3}, auto {auto:.3} by {:?}",
                planning.plan()
            );
            assert!(auto <= 1.03 * best, "{name} at {temperature}: {auto} where {plan:?} takes {best}: {planning:?}");
            assert!(first <= 1.2 * best, "{name} at {temperature}: {first} at first, where {plan:?} takes {best}");
        }
    }
}

/// A drafter that knows where it guesses: `auto` ends its drafts there, which no fixed length can do.
#[test]
fn drafts_end_where_the_drafter_is_unsure() {
    for (temperature, least) in [(0.0, 1.05), (1.0, 1.05)] {
        let mut world = target_and_drafter(1.0, 0.15, temperature);
        let script = |context: &[i32], row: &mut [f32]| {
            let common = hash(context, 0) % VOCAB as u64;
            let is_sure = hash(context, 7) % 10 < 7;
            let is_right = is_sure || hash(context, 8) % 10 < 3;
            let token = if is_right { common } else { (common + 1) % VOCAB as u64 };
            row[token as usize] = if is_sure { 40.0 } else { 1.0 };
            Ok(())
        };
        let time = |width, _| Duration::from_secs_f64(0.3 * (1.0 + 0.1 * (width as f64 - 1.0)));
        world.models[1] = Arc::new(Scripted::new(VOCAB, script).with_pass_times(time)).into();
        let shared = Mutex::default();
        world.auto(&shared, 512);
        let (auto, planning) = world.auto(&shared, 3000);
        let (best, plan) = world.best(3000);
        println!("{temperature}: best {best:.3} by {plan:?}, auto {auto:.3} by {:?}", planning.plan());
        assert!(planning.plan().stop_below > 0, "{planning:?}");
        assert!(auto * least <= best, "at {temperature}: {auto} where {plan:?} takes {best}");
    }
}

/// Drafters and companions that do harm: at most 1 % slower than nobody proposing, with all that was tried.
#[test]
fn auto_is_never_slower_than_standard() {
    let late = |late: f64| move |position: usize| if position < 300 { 0.95 } else { late };
    let dearer = |width, passes| usual(if passes < 60 { 0.2 } else { 4.0 })(width, passes);
    for temperature in [0.0, 1.0] {
        let mut worlds = vec![
            ("a drafter that is always wrong", target_and_drafter(0.0, 0.1, temperature)),
            ("a dear drafter that is always wrong", target_and_drafter(0.0, 1.0, temperature)),
            ("unrelated models", mixture(&[0.0, 0.0], temperature)),
            ("three unrelated models", mixture(&[0.0, 0.0, 0.0], temperature)),
            ("an unrelated amateur", contrastive(0.0, 0.5, temperature)),
        ];
        for (name, agreement, cost) in [
            ("a drafter that fails in the middle", late(0.0), 0.1),
            ("a dear drafter that fails in the middle", late(0.0), 0.5),
        ] {
            let mut world = target_and_drafter(0.9, cost, temperature);
            world.models[1] = model(2, agreement, usual(2.0 * cost));
            worlds.push((name, world));
        }
        let mut world = target_and_drafter(0.9, 0.1, temperature);
        world.models[1] = model(2, |_| 0.9, dearer);
        worlds.push(("a drafter that becomes dear", world));
        for (name, world) in worlds {
            let (standard, (auto, planning)) = (world.standard(1024), world.auto(&Mutex::default(), 1024));
            println!("{name} at {temperature}: standard {standard:.3}, auto {auto:.3} by {:?}", planning.plan());
            assert!(auto <= 1.01 * standard, "{name} at {temperature}: {auto}, but standard {standard}: {planning:?}");
        }
    }
}

/// A hard stretch of text does not end a plan that does well before and after it.
#[test]
fn hard_stretches_are_ridden_out() {
    let mut world = target_and_drafter(0.0, 0.05, 0.0);
    world.models[1] = model(2, |position| if position % 200 < 8 { 0.0 } else { 0.9 }, usual(0.5));
    let shared = Mutex::default();
    world.auto(&shared, 512);
    let (auto, planning) = world.auto(&shared, 3000);
    let (best, plan) = world.best(3000);
    println!("best {best:.3} by {plan:?}, auto {auto:.3} by {:?}", planning.plan());
    assert!(auto <= 1.02 * best, "{auto} where {plan:?} takes {best}: {planning:?}");
}

/// What `standard` takes is measured while another plan is in force, and believed over what wider passes suggest.
#[test]
fn standard_is_what_was_measured() {
    let world = target_and_drafter(0.9, 0.05, 0.0);
    let speculative = Plan::of(Policy::Speculative { proposer: 1, length: 4 }, Targets::Combined);
    let choices = Choices::new(&world.request(None, None, &[1, 1]), &[true; 2]);
    let estimates = Estimates::new(&[vec![(1, 2.0), (8, 3.0)], vec![(1, 0.1), (8, 0.2)]]);
    let mut planner = Planner::new(choices.clone(), speculative.clone(), None);
    let guessed = planner.standard(&estimates);
    for _ in 0..20 {
        planner.record_standard(1, 1.25 * guessed, planner.standard(&estimates));
    }
    assert!((planner.standard(&estimates) / guessed - 1.25).abs() < 0.01, "{planner:?}");
    // A session that begins later knows it too.
    let later = Planner::new(choices, speculative, Some(planner.experience()));
    assert_eq!(later.standard(&estimates), planner.standard(&estimates));
}

/// What was no good becomes good: probes find it out. To keep its cache in step has to be cheap enough for that.
#[test]
fn auto_takes_up_a_drafter_that_becomes_good() {
    let mut world = target_and_drafter(0.0, 0.02, 0.0);
    world.models[1] = model(2, |position| if position < 400 { 0.0 } else { 0.95 }, usual(0.04));
    let (_, planning) = world.auto(&Mutex::default(), 2048);
    assert!(
        matches!(planning.plan().policy, Policy::Speculative { proposer: 1, .. } | Policy::Cos { .. }),
        "{planning:?}"
    );
}

/// A drafter whose context ends in the middle of the text: it is used until then, and then costs nothing more.
#[test]
fn a_drafter_is_used_until_its_context_ends() {
    let mut world = target_and_drafter(0.9, 0.05, 0.0);
    let (standard, (best, _)) = (world.standard(1000), world.best(1000));
    world.models[1] = Arc::new(scripted(2, |_| 0.9, usual(0.1)).with_context_length(1000 + PROMPT.len() + 2)).into();
    let shared = Mutex::default();
    for text in 0..2 {
        let (auto, planning) = world.auto(&shared, 2000);
        let expected = (standard + best) / 2.0;
        assert!(auto <= 1.05 * expected, "text {text}: {auto}, where {expected} is expected: {planning:?}");
        assert_eq!(planning.plan().policy, Policy::Standard, "text {text}");
    }
}

/// Where a pass takes less than a look: the first looks are not waited for.
#[test]
fn what_is_fast_is_planned_soon() {
    let models = vec![model(1, |_| 1.0, usual(3e-4)), model(2, |_| 0.9, usual(3e-5))];
    let world = World { models, combination: Combination::target(2, 0).unwrap(), temperature: 0.0, beside: 0.0 };
    let mut plans: Vec<Plan> = Vec::new();
    world.planned(&Mutex::default(), 100, None, None, |plan| {
        if plans.last() != Some(plan) {
            plans.push(plan.clone());
        }
    });
    let longest = |plan: &Plan| plan.policy.longest().map_or(0, |(_, length)| length);
    assert!(longest(&plans[0]) <= 1 && longest(plans.last().unwrap()) >= 4, "{plans:?}");
}

/// Probes of a model that is never used take less than half of a hundredth of the time, and the first one what was
/// allowed for it.
#[test]
fn exploration_is_bounded() {
    let world = target_and_drafter(0.0, 0.1, 0.0);
    let standard = Plan::of(Policy::Standard, Targets::Combined);
    let alone = world.fixed(&standard, 4096);
    let (auto, planning) = world.auto(&Mutex::default(), 4096);
    assert_eq!(*planning.plan(), standard);
    assert!(auto > alone, "a drafter was tried");
    assert!(auto < 1.005 * alone, "{auto} against {alone}");
}

/// A session that begins with a plan of another one knows from its first token what that is to gain.
#[test]
fn what_is_expected_is_inherited() {
    let (world, shared) = (target_and_drafter(0.9, 0.05, 0.0), Mutex::default());
    let (_, first) = world.auto(&shared, 512);
    let (_, second) = world.auto(&shared, 32);
    assert_eq!(first.plan(), second.plan());
    let (first, second) = (first.times(), second.times());
    let gain = |times: PlanTimes| times.standard_ns as f64 / times.expected_ns as f64;
    assert!(second.planned_ns > 0 && (gain(second) / gain(first) - 1.0).abs() < 0.2, "{first:?}, {second:?}");
}

/// A forecast is what the decoder does.
#[test]
fn forecasts_hold() {
    for world in [
        target_and_drafter(0.7, 0.1, 1.0),
        contrastive(0.8, 0.3, 1.0),
        mixture(&[0.9, 0.7], 1.0),
        mixture(&[0.9, 0.8, 0.7], 1.0),
    ] {
        let models = world.models.len();
        let task = Task {
            weights: world.combination.weights().to_vec(),
            single: world.combination.single(),
            scores: vec![true; models],
        };
        let routable = matches!(world.combination, Combination::Mixture { .. });
        for targets in [Targets::Combined, Targets::Routed].into_iter().take(1 + usize::from(routable)) {
            let mut policies = vec![Policy::Standard];
            policies.extend([1, 4].map(|length| Policy::Speculative { proposer: 1, length }));
            for lengths in [[1, 1, 1], [1, 3, 1]] {
                policies.push(Policy::Cos { lengths: lengths[..models].to_vec(), order: (0..models).rev().collect() });
            }
            for policy in policies {
                let plan = Plan::of(policy, targets);
                let mut decoder = world.decoder(plan.clone(), 3, 3000);
                let seconds = |&(width, time): &(usize, Duration)| (width, time.as_secs_f64());
                let times = |model: &Participant| model.pass_times().iter().map(seconds).collect::<Vec<_>>();
                decoder.observe(Estimates::new(&world.models.iter().map(times).collect::<Vec<_>>()));
                while decoder.round().unwrap().1.is_none() {}
                let found = decoder.elapsed().as_secs_f64() / 3000.0;
                let estimates = decoder.observer().unwrap().estimates().clone();
                let forecast = Forecast::new(&task, &estimates).seconds_per_token(&plan, LONGEST - 1);
                println!("{plan:?}: {found:.3}, forecast {forecast:.3}");
                assert!((forecast / found - 1.0).abs() < 0.06, "{plan:?}: {found}, forecast {forecast}");
            }
        }
    }
}

/// Whatever is pinned stays, whatever would be faster.
#[test]
fn pinned_lengths_and_targets_stay() {
    let world = mixture(&[0.9, 0.9], 1.0);
    let combined = |plan: &Plan| assert_eq!(plan.targets, Targets::Combined);
    let (_, planning) = world.planned(&Mutex::default(), 512, None, Some(Targets::Combined), combined);
    assert!(matches!(planning.plan().policy, Policy::Cos { .. }), "{planning:?}");
    let world = target_and_drafter(0.95, 0.05, 0.0);
    let short = |plan: &Plan| assert!(plan.policy.max_pending() <= 4, "{plan:?}");
    let (_, planning) = world.planned(&Mutex::default(), 512, Some(&[0, 2]), None, short);
    assert!(
        matches!(&planning.plan().policy, Policy::Speculative { length: 2, .. } | Policy::Cos { .. }),
        "{planning:?}"
    );
    let never = |plan: &Plan| assert_eq!(plan.policy, Policy::Standard);
    world.planned(&Mutex::default(), 512, Some(&[0, 0]), None, never);
}

/// Passes that prepare others, as where a GPU captures each width, take much longer, and tell nothing of later ones.
#[test]
fn preparation_teaches_nothing() {
    for times in [1.0, 10.0, 100.0] {
        let mut world = mixture(&[0.6, 0.6], 1.0);
        for (salt, model) in (1..).zip(&mut world.models) {
            let script = move |context: &[i32], row: &mut [f32]| {
                let agrees = (hash(context, salt) >> 11) as f64 / (1u64 << 53) as f64 <= 0.6;
                row[((hash(context, 0) + salt * u64::from(!agrees)) % VOCAB as u64) as usize] = 40.0;
                Ok(())
            };
            let time = |width, passes| Duration::from_secs_f64(usual(2.0)(width, passes));
            *model = Arc::new(Scripted::new(VOCAB, script).with_pass_times(time).with_preparation(times)).into();
        }
        let shared = Mutex::default();
        world.auto(&shared, 100);
        let (_, planning) = world.auto(&shared, 400);
        assert_eq!(planning.plan().targets, Targets::Routed, "{planning:?}");
        let PlanTimes { planned_ns, expected_ns, standard_ns } = planning.times();
        let (taken, gained) = (planned_ns as f64 / expected_ns as f64, standard_ns as f64 / planned_ns as f64);
        println!("{times}: {taken:.3} of what was expected, {gained:.3} times as fast as standard");
        assert!((taken - 1.0).abs() < 0.05 && gained > 1.7, "{times}: {taken}, {gained}: {planning:?}");
    }
}

/// The same through a session, with the clock that it sees.
#[test]
fn sessions_do_not_count_rounds_that_prepare_others() {
    const TIMES: u64 = 100;
    let clock = Arc::new(AtomicU64::new(0));
    let model = |salt: u64| {
        let script = move |context: &[i32], row: &mut [f32]| {
            row[((hash(context, 0) + u64::from(hash(context, salt).is_multiple_of(3))) % VOCAB as u64) as usize] = 40.0;
            Ok(())
        };
        let (clock, widths) = (clock.clone(), Mutex::new(Vec::new()));
        let time = move |width: usize, passes: u64| {
            let time = Duration::from_secs_f64(usual(2.0)(width, passes));
            let mut widths = widths.lock();
            let met = widths.iter().filter(|of| **of == width).count() as u64;
            widths.push(width);
            clock.fetch_add(time.as_nanos() as u64 * if met < 2 { TIMES } else { 1 }, Ordering::Relaxed);
            time
        };
        Participant::from(Arc::new(Scripted::new(VOCAB, script).with_pass_times(time).with_preparation(TIMES as f64)))
    };
    let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
    let engine = Engine::new(vec![model(1), model(2)], combine, Vec::new(), None).unwrap();
    let told = clock.clone();
    let engine = Arc::new(engine.with_clock(move || Duration::from_nanos(told.load(Ordering::Relaxed))));
    let sampler = Sampler::new(1.0, 0, 0.0, 0.0).unwrap();
    let options = Options { strategy: Strategy::Auto, sampler, max_tokens: 400, ..Options::default() };
    let mut session = Session::new(&engine, &options).unwrap();
    session.prompt(&PROMPT).unwrap();
    while session.step().unwrap().1 == State::Open {}
    let PlanTimes { planned_ns, standard_ns, .. } = session.stats().plan_times;
    let gained = standard_ns as f64 / planned_ns as f64;
    assert!(gained > 1.5, "{gained}: {}", session.describe());
}

/// A contrastive world of two models that agree so often, and whose passes run at the same time: all but the longest
/// pass of those takes only this share.
fn overlapping(agreement: f64, serial: f64) -> World {
    let model = |salt: u64, agreement: f64| {
        let script = move |context: &[i32], row: &mut [f32]| {
            let agrees = (hash(context, salt) >> 11) as f64 / (1u64 << 53) as f64 <= agreement;
            row[((hash(context, 0) + u64::from(!agrees)) % VOCAB as u64) as usize] = 40.0;
            Ok(())
        };
        let time = |width, passes| Duration::from_secs_f64(usual(2.0)(width, passes));
        let model = Scripted::new(VOCAB, script).with_pass_times(time).with_overlap((1.0 + serial) / 2.0);
        Participant::from(Arc::new(model))
    };
    World { models: vec![model(1, 1.0), model(2, agreement)], ..contrastive(0.0, 1.0, 0.0) }
}

/// Of models that run at the same time, `standard` is what it then takes, and a plan must gain more than that.
#[test]
fn models_that_run_at_the_same_time_are_planned() {
    for (agreement, serial, is_standard) in [(0.4, 0.0, true), (0.95, 0.1, true), (0.95, 0.8, false)] {
        let world = overlapping(agreement, serial);
        let shared = Mutex::new(SharedPlanning::new(Some(serial), Default::default()));
        world.auto(&shared, 512);
        let (auto, planning) = world.auto(&shared, 3000);
        let (best, plan) = world.best(3000);
        println!("{agreement}, {serial}: best {best:.3} by {plan:?}, auto {auto:.3} by {:?}", planning.plan());
        assert_eq!(planning.plan().policy == Policy::Standard, is_standard, "{agreement}, {serial}: {planning:?}");
        assert!(auto <= 1.03 * best, "{agreement}, {serial}: {auto} where {plan:?} takes {best}: {planning:?}");
    }
}

/// Work beside the models that comes with proposals, as with long rows on the host, is no part of what `standard`
/// takes.
#[test]
fn work_for_proposals_is_not_taken_for_that_of_passes() {
    for (agreement, beside) in [(0.5, 1.0), (0.65, 1.0), (0.65, 2.0), (0.8, 4.0)] {
        let world = World { beside, ..overlapping(agreement, 0.3) };
        let shared = Mutex::new(SharedPlanning::new(Some(0.3), Default::default()));
        world.auto(&shared, 512);
        let (auto, planning) = world.auto(&shared, 3000);
        let standard = world.standard(3000);
        assert!(auto < 1.03 * standard, "{agreement}, {beside}: {auto}, and {standard} by standard: {planning:?}");
    }
    // Where proposals pay all the same, they are made.
    let world = World { beside: 0.2, ..overlapping(0.95, 0.8) };
    let shared = Mutex::new(SharedPlanning::new(Some(0.8), Default::default()));
    world.auto(&shared, 512);
    let (auto, planning) = world.auto(&shared, 3000);
    let standard = world.standard(3000);
    assert!(auto < 0.8 * standard, "{auto}, and {standard} by standard: {planning:?}");
}

/// Work for proposals that was much once, or in another task, keeps nobody from proposing when it is little.
#[test]
fn work_for_proposals_that_becomes_little_is_found_out() {
    let world = |beside: f64, temperature: f32| World { beside, temperature, ..overlapping(0.95, 0.8) };
    let shared = || {
        let shared = Mutex::new(SharedPlanning::new(Some(0.8), Default::default()));
        assert_eq!(world(6.0, 0.0).auto(&shared, 1000).1.plan().policy, Policy::Standard);
        shared
    };
    let standard = world(0.0, 0.0).standard(3000);
    // Something else is decoded.
    let shared_of_another = shared();
    let (auto, planning) = world(0.0, 1.0).auto(&shared_of_another, 512);
    assert!(auto < 0.8 * standard, "{auto}, and {standard} by standard: {planning:?}");
    // It has become less.
    let shared = shared();
    world(0.0, 0.0).auto(&shared, 6000);
    let (auto, planning) = world(0.0, 0.0).auto(&shared, 3000);
    assert!(auto < 0.8 * standard, "{auto}, and {standard} by standard: {planning:?}");
}

/// A look-up is free, and taken where the text repeats itself.
#[test]
fn look_ups_are_planned() {
    let mut world = target_and_drafter(0.0, 1.0, 0.0);
    let script = |context: &[i32], row: &mut [f32]| {
        row[context.len() % 7] = 40.0;
        Ok(())
    };
    world.models = vec![
        Arc::new(
            Scripted::new(VOCAB, script).with_pass_times(|width, _| Duration::from_secs_f64(usual(2.0)(width, 0))),
        )
        .into(),
        Participant::LookUp("ngram".into()),
    ];
    let (auto, planning) = world.auto(&Mutex::default(), 512);
    assert!(auto < 0.5 * world.standard(512), "{auto}: {planning:?}");
}
