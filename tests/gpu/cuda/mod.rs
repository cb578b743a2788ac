//! What needs a GPU. Without one each test says why it is skipped, unless `COS_TEST_PROVIDER=cuda`: `scripts/gpu-check` runs them so. What
//! can be had of a test without one is tested before.

mod captures;
mod exports;
mod half;
mod rows;
mod sessions;
