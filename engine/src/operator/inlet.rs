//! A stream that is there before the operator it comes from: what a pipeline is handed of an
//! operator that it finishes later.

use timely::container::NoopBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::progress::Antichain;
use timely::progress::operate::FrontierInterest;

use crate::words::Batch;

use super::stage::give_up;

/// Passes on what its stream will carry. Epochs pass as they are: nothing of the stream may lead
/// back to the operator it comes from.
pub(crate) struct Inlet<'a, T: 'static> {
    building: Option<Building<'a, T>>,
}

/// The operator that passes batches on, and its output.
type Building<'a, T> = (OperatorBuilder<'a, u64>, OutputBuilder<u64, NoopBuilder<Batch<T>>>);

impl<'a, T: 'static> Inlet<'a, T> {
    /// An inlet, and the stream that it will feed.
    pub(crate) fn new(scope: Scope<'a, u64>, name: &str) -> (Inlet<'a, T>, Stream<'a, u64, Batch<T>>) {
        let mut builder = OperatorBuilder::new(name.to_owned(), scope);
        let (output, stream) = builder.new_output();
        (Inlet { building: Some((builder, OutputBuilder::from(output))) }, stream)
    }

    /// Feeds the stream from this one.
    pub(crate) fn connect(mut self, from: Stream<'a, u64, Batch<T>>) {
        let Some((mut builder, mut output)) = self.building.take() else { return };
        let at_once = [(0, Antichain::from_elem(Default::default()))];
        let mut input = builder.new_input_connection(from, Pipeline, at_once);
        builder.set_notify_for(0, FrontierInterest::Never);
        builder.build(move |_| {
            move |_| {
                let mut output = output.activate();
                input.for_each(|capability, batch| {
                    let at = capability.retain_least(0).expect("a batch is sent at one epoch");
                    output.session_with_builder(&at).give_container(batch);
                });
            }
        });
    }
}

impl<T: 'static> Drop for Inlet<'_, T> {
    fn drop(&mut self) {
        // The pipeline could not be built.
        if let Some((builder, _)) = self.building.take() {
            give_up(builder);
        }
    }
}
