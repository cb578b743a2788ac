//! What a step tells of how its tokens came about is what the counters count.

use cos::decode::chance::CounterRng;
use cos::decode::combine::Combination;
use cos::decode::decoder::{Alternatives, Decoder, Origin, OriginKind, Settings, Workspace};
use cos::decode::policy::{Strategy, Targets};

use super::controls::following;
use crate::common::{PROMPT, Sampling, Way, World, controlled_decoder, decoder, plan, ways};

/// The origins of a whole text.
fn origins(decoder: &mut cos::engine::drive::Driver<CounterRng>) -> Vec<Origin> {
    decoder.prompt(&PROMPT).unwrap();
    let mut all = Vec::new();
    loop {
        let (count, finish) = decoder.round().map(|(tokens, finish)| (tokens.len(), finish)).unwrap();
        assert_eq!(decoder.origins().len(), count, "one for each token of the round");
        all.extend_from_slice(decoder.origins());
        if finish.is_some() {
            return all;
        }
    }
}

fn count(origins: &[Origin], kind: OriginKind, participant: usize) -> u64 {
    origins.iter().filter(|origin| **origin == Origin { kind, participant: participant as i32 }).count() as u64
}

/// By each participant, under every strategy.
#[test]
fn origins_are_what_the_counters_count() {
    let combination = Combination::mixture(&[0.3, 0.7]).unwrap();
    let mut replaced = 0;
    for world in [World::Related, World::Unrelated] {
        for sampling in [Sampling::PLAIN, Sampling::GREEDY] {
            for way in ways(2, &combination, sampling) {
                let models = world.models(2, 3);
                let mut decoder = decoder(&models, &combination, sampling, &way, &[], 40, CounterRng::new(3));
                let origins = origins(&mut decoder);
                for participant in 0..2 {
                    let accepted = count(&origins, OriginKind::Accepted, participant);
                    let tested = accepted + count(&origins, OriginKind::Replaced, participant);
                    let [all, of_accepted] = decoder
                        .tested()
                        .of(participant)
                        .iter()
                        .fold([0; 2], |sum, [all, some]| [sum[0] + all, sum[1] + some]);
                    assert_eq!([tested, accepted], [all, of_accepted], "{way:?} {world:?}");
                    replaced += tested - accepted;
                }
                // A route is one model's distribution; a combination is nobody's.
                let drawn = origins.iter().filter(|origin| origin.kind == OriginKind::Drawn);
                let is_routed = way.targets == Targets::Routed && sampling != Sampling::GREEDY;
                drawn.for_each(|origin| assert_eq!(origin.participant >= 0, is_routed, "{way:?}"));
            }
        }
    }
    assert!(replaced > 20, "proposals were rejected");
    let alone = Combination::mixture(&[1.0, 0.0]).unwrap();
    for sampling in [Sampling::PLAIN, Sampling::GREEDY] {
        let way = Way::new(Strategy::Standard, Targets::Combined, &[0, 0]);
        let models = World::Related.models(2, 3);
        let mut decoder = decoder(&models, &alone, sampling, &way, &[], 8, CounterRng::new(3));
        assert!(origins(&mut decoder).iter().all(|origin| *origin == Origin::drawn(Some(0))));
    }
}

/// Behind 2 comes 1 for certain.
#[test]
fn tokens_that_were_the_only_ones_are_forced() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    for way in ways(2, &combination, Sampling::PLAIN) {
        let models = World::Related.models(2, 3);
        let controls = following(false);
        let mut decoder = controlled_decoder(
            &models,
            &combination,
            Sampling::PLAIN,
            &way,
            (&controls, None),
            (&[], 40),
            CounterRng::new(1),
        );
        let origins = origins(&mut decoder);
        for (origin, pair) in origins[1..].iter().zip(decoder.committed()[PROMPT.len()..].windows(2)) {
            assert_eq!(*origin == Origin::FORCED, pair[0] == 2, "{way:?}");
        }
    }
}

/// A forced token that is pending cannot be verified, because nobody has proposed it.
#[test]
fn forced_tokens_are_dropped_where_rows_are_wanted() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    let way = Way::new(Strategy::Cos, Targets::Combined, &[2, 2]);
    let alternatives = Alternatives { before: true, ..Alternatives::default() };
    for seed in 0..200 {
        let models = World::Related.models(2, 3);
        let controls = following(false);
        let mut driver = controlled_decoder(
            &models,
            &combination,
            Sampling::PLAIN,
            &way,
            (&controls, None),
            (&[], 12),
            CounterRng::new(seed),
        );
        driver.prompt(&PROMPT).unwrap();
        for round in 0.. {
            let decoder: &mut Decoder<CounterRng> = &mut driver;
            let wanted = Settings { log_probabilities: round % 2 == 0, alternatives, ..decoder.settings().clone() };
            decoder.set_settings(wanted, plan(&models, &combination, Sampling::PLAIN, &way)).unwrap();
            if driver.round().unwrap().1.is_some() {
                break;
            }
        }
    }
}

/// A round that is cancelled before it begins tells nothing, not what the one before has told.
#[test]
fn a_round_without_tokens_has_no_origins() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    let way = Way::new(Strategy::Standard, Targets::Combined, &[0, 0]);
    let models = World::Related.models(2, 3);
    let mut driver = decoder(&models, &combination, Sampling::PLAIN, &way, &[], 8, CounterRng::new(3));
    driver.prompt(&PROMPT).unwrap();
    driver.round().unwrap();
    assert_eq!(driver.origins().len(), 1);
    let decoder: &mut Decoder<CounterRng> = &mut driver;
    decoder.failed(&mut Workspace::new(3));
    assert_eq!((decoder.round().0.len(), decoder.origins().len()), (0, 0));
}
