//! Requests of OpenAI's protocol: their bodies are checked and decoded, and their answers written. Servers carry bytes.

mod answer;
mod body;
mod choice;
mod client;
mod many;
mod options;
pub mod refusal;
mod terms;
mod turns;

pub use self::answer::Usage;
pub use self::choice::{Ending, News};
pub use self::client::{Canceller, ClientRequest, Status};
pub use self::many::step_many;
pub use self::terms::{Endpoint, Terms};
