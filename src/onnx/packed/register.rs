//! Gives sessions of ONNX Runtime our operators.

use std::ptr;

use once_cell::sync::OnceCell;
use ort::AsPointer;
use ort::session::builder::SessionBuilder;
use ort::sys::OrtCustomOpDomain;

use super::custom::succeed;
use super::{gpu_attention, operator};
use crate::export::parts::DOMAIN;
use crate::process::{PerProcess, stay_loaded};

/// A domain with operators. It is never freed, since ONNX Runtime keeps its address.
struct Domain(*mut OrtCustomOpDomain);

// SAFETY: ONNX Runtime only reads a domain once the operators are in it.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

static MADE: PerProcess<OnceCell<Domain>> = PerProcess::new(OnceCell::new);

/// Let sessions of the builder have the operators.
///
/// # Errors
/// If ONNX Runtime has no memory.
pub fn register(builder: &SessionBuilder) -> ort::Result<()> {
    let api = ort::api();
    let domain = MADE.get().get_or_try_init(|| -> ort::Result<Domain> {
        // ONNX Runtime keeps the addresses of operators and of their functions.
        stay_loaded();
        let mut domain = ptr::null_mut();
        let [float16, bfloat16] = gpu_attention::OPERATORS;
        // SAFETY: the name is a C string, and the operators are static.
        unsafe {
            succeed((api.CreateCustomOpDomain)(DOMAIN.as_ptr(), &mut domain))?;
            for operator in [&operator::OPERATOR, float16, bfloat16] {
                succeed((api.CustomOpDomain_Add)(domain, operator))?;
            }
        }
        Ok(Domain(domain))
    })?;
    // SAFETY: the builder's options are valid, and the domain is never freed.
    succeed(unsafe { (api.AddCustomOpDomain)(builder.ptr().cast_mut(), domain.0) })
}
