//! Proof that decoding is exact. Every outcome of the decoder is enumerated with its probability, and the joint
//! distribution of several tokens is compared with the oracle's. There is no sampling error, so a bias of a hundredth
//! of a percent shows.

mod branches;
mod changes;
mod company;
mod controls;
mod drafters;
mod enumeration;
mod failures;
mod origins;
mod sequences;
mod shared;
mod strategies;
