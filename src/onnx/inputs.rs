//! The inputs of a sequence's passes, the cache aside: whole numbers and truths of the type that each of them takes.

use ort::memory::MemoryInfo;
use ort::value::TensorElementType;

use super::binding::Tensor;
use crate::export::Input;

/// An input and the numbers to feed it with.
pub struct Feed {
    pub input: Input,
    pub numbers: Numbers,
}

/// Numbers of the type that an input takes.
pub enum Numbers {
    Int64(Vec<i64>),
    Int32(Vec<i32>),
    Bool(Vec<u8>),
    /// The mask that the cache keeps.
    OfCache,
}

impl Feed {
    /// Without numbers.
    pub fn new(input: &Input) -> Self {
        Feed { input: input.clone(), numbers: Numbers::of(input.element) }
    }
}

impl Numbers {
    fn of(element: TensorElementType) -> Self {
        match element {
            TensorElementType::Int32 => Numbers::Int32(Vec::new()),
            TensorElementType::Bool => Numbers::Bool(Vec::new()),
            _ => Numbers::Int64(Vec::new()),
        }
    }

    /// Have these numbers and no others. How many there are may be up to the export, so that there may not be enough memory.
    pub fn fill(&mut self, values: impl IntoIterator<Item = i64>) -> ort::Result<()> {
        let values = values.into_iter();
        match self {
            Numbers::Int64(numbers) => refill(numbers, values),
            Numbers::Int32(numbers) => refill(numbers, values.map(|value| value as i32)),
            Numbers::Bool(numbers) => refill(numbers, values.map(|value| u8::from(value != 0))),
            Numbers::OfCache => {
                let mut numbers = Vec::new();
                let result = refill(&mut numbers, values);
                *self = Numbers::Int64(numbers);
                result
            }
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Numbers::Int64(numbers) => bytemuck::cast_slice(numbers),
            Numbers::Int32(numbers) => bytemuck::cast_slice(numbers),
            Numbers::Bool(numbers) => numbers,
            Numbers::OfCache => &[],
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Numbers::Int64(numbers) => numbers.len(),
            Numbers::Int32(numbers) => numbers.len(),
            Numbers::Bool(numbers) => numbers.len(),
            Numbers::OfCache => 0,
        }
    }

    pub fn tensor(&mut self, memory: &MemoryInfo, shape: &[i64]) -> ort::Result<Tensor> {
        match self {
            Numbers::Int64(numbers) => Tensor::over(memory, numbers, TensorElementType::Int64, shape),
            Numbers::Int32(numbers) => Tensor::over(memory, numbers, TensorElementType::Int32, shape),
            Numbers::Bool(numbers) => Tensor::over(memory, numbers, TensorElementType::Bool, shape),
            Numbers::OfCache => Err(ort::Error::new("the mask is not here")),
        }
    }
}

fn refill<T>(numbers: &mut Vec<T>, values: impl Iterator<Item = T>) -> ort::Result<()> {
    numbers.clear();
    let count = values.size_hint().0;
    numbers
        .try_reserve(count)
        .map_err(|_| ort::Error::new(format!("not enough memory for an input of {count} numbers")))?;
    numbers.extend(values);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_type() {
        let fill = |element| {
            let mut numbers = Numbers::of(element);
            numbers.fill([0, 1, 70_000]).unwrap();
            numbers
        };
        assert!(matches!(fill(TensorElementType::Int64), Numbers::Int64(numbers) if numbers == [0, 1, 70_000]));
        assert!(matches!(fill(TensorElementType::Int32), Numbers::Int32(numbers) if numbers == [0, 1, 70_000]));
        assert!(matches!(fill(TensorElementType::Bool), Numbers::Bool(numbers) if numbers == [0, 1, 1]));
    }

    #[test]
    fn numbers_that_no_memory_holds_are_an_error() {
        crate::onnx::environment(None, 0, None).unwrap(); // which makes errors
        for element in [TensorElementType::Int64, TensorElementType::Int32, TensorElementType::Bool] {
            let mut numbers = Numbers::of(element);
            assert!(numbers.fill(std::iter::repeat_n(0, usize::MAX)).is_err());
            assert_eq!(numbers.len(), 0);
        }
    }
}
