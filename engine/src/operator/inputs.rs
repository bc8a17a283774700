//! The inputs of an operator. An operator may have several, of different types, and asks for their
//! frontiers when it needs to know what is complete.

use timely::Container;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::ParallelizationContract;
use timely::dataflow::operators::InputCapability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::progress::frontier::MutableAntichain;
use timely::progress::operate::FrontierInterest;

use crate::words::Epoch;

/// An input that carries containers of type `C`.
pub(crate) struct Input<C> {
    index: usize,
    drain: Drain<C>,
}

impl<C: Container> Input<C> {
    /// Connects a stream to an operator that is being built. `interest` says which changes of its
    /// frontier wake the operator.
    pub(crate) fn new<'a, P: ParallelizationContract<u64, C>>(
        builder: &mut OperatorBuilder<'a, u64>,
        stream: Stream<'a, u64, C>,
        pact: P,
        interest: FrontierInterest,
    ) -> Input<C> {
        let index = builder.shape().inputs();
        let mut handle = builder.new_input(stream, pact);
        builder.set_notify_for(index, interest);
        Input {
            index,
            drain: Box::new(move |take| handle.for_each(|capability, container| take(capability, container))),
        }
    }

    /// Passes what has arrived to `take`, in the order of arrival.
    pub(crate) fn for_each(&mut self, mut take: impl FnMut(InputCapability<u64>, &mut C)) {
        (self.drain)(&mut take);
    }
}

/// Takes a container that has arrived, with a capability of its epoch.
type Take<'t, C> = dyn FnMut(InputCapability<u64>, &mut C) + 't;

/// Passes each container that has arrived to a [`Take`].
type Drain<C> = Box<dyn FnMut(&mut Take<'_, C>)>;

/// The frontiers of an operator's inputs, computed when they are asked for.
#[derive(Clone, Copy)]
pub(crate) struct Frontiers<'f>(&'f [MutableAntichain<u64>]);

impl<'f> Frontiers<'f> {
    pub(crate) fn new(inputs: &'f [MutableAntichain<u64>]) -> Frontiers<'f> {
        Frontiers(inputs)
    }

    /// The least epoch at which anything can still arrive at one input; `None` when nothing can.
    pub(crate) fn of<C>(self, input: &Input<C>) -> Option<Epoch> {
        self.at(input.index)
    }

    /// The least epoch at which anything can still arrive at any of these inputs; `None` when
    /// nothing can.
    pub(crate) fn least<'i, C: 'i>(self, inputs: impl IntoIterator<Item = &'i Input<C>>) -> Option<Epoch> {
        inputs.into_iter().filter_map(|input| self.of(input)).min()
    }

    fn at(self, index: usize) -> Option<Epoch> {
        self.0[index].frontier().first().copied().map(Epoch::from_raw)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use timely::container::CapacityContainerBuilder;
    use timely::dataflow::channels::pact::Pipeline;
    use timely::dataflow::operators::generic::OutputBuilder;

    use super::*;
    use crate::words::CheckpointId;

    /// A source that sends its containers, one epoch each, and ends.
    fn feed<'a, C: Container + Clone>(
        scope: timely::dataflow::Scope<'a, u64>,
        containers: Vec<(Epoch, C)>,
    ) -> Stream<'a, u64, C>
    where
        CapacityContainerBuilder<C>: timely::container::ContainerBuilder<Container = C>,
    {
        let mut builder = OperatorBuilder::new("feed".to_owned(), scope);
        let (output, stream) = builder.new_output::<C>();
        let mut output = OutputBuilder::<u64, CapacityContainerBuilder<C>>::from(output);
        let activator = scope.activator_for(builder.operator_info().address);
        builder.build(move |mut capabilities| {
            let (mut capability, mut left) = (capabilities.pop(), containers.into_iter());
            move |_| match (&mut capability, left.next()) {
                (Some(capability), Some((epoch, mut container))) => {
                    capability.downgrade(&epoch.as_raw());
                    output.activate().session(capability).give_container(&mut container);
                    activator.activate();
                }
                _ => capability = None,
            }
        });
        stream
    }

    #[test]
    fn an_operator_has_inputs_of_different_types_and_asks_for_their_frontiers() {
        let epochs: Vec<Epoch> = (1..=3).map(|number| CheckpointId::new(number).first_epoch()).collect();
        let (sender, told) = mpsc::channel();
        let (numbers, words) = (
            vec![(epochs[0], vec![1, 2]), (epochs[1], vec![3])],
            vec![(epochs[0], vec!["a".to_owned()]), (epochs[2], vec!["b".to_owned()])],
        );
        timely::execute_directly(move |worker| {
            worker.dataflow::<u64, _, _>(|scope| {
                let (numbers, words) = (feed(scope, numbers), feed(scope, words));
                let mut builder = OperatorBuilder::new("both".to_owned(), scope);
                let mut numbers = Input::new(&mut builder, numbers, Pipeline, FrontierInterest::Always);
                let mut words = Input::new(&mut builder, words, Pipeline, FrontierInterest::Always);
                builder.build(move |_| {
                    let (mut sum, mut text, mut before) = (0, String::new(), None);
                    move |frontiers| {
                        numbers.for_each(|_, values| sum += values.drain(..).sum::<i32>());
                        words.for_each(|_, values| values.drain(..).for_each(|value| text.push_str(&value)));
                        let frontiers = Frontiers::new(frontiers);
                        // An input that has ended holds nothing back.
                        let now = frontiers.of(&numbers).into_iter().chain(frontiers.of(&words)).min();
                        if before.replace(now) != Some(now) {
                            sender.send((now, sum, text.clone())).unwrap();
                        }
                    }
                });
            });
        });
        let told: Vec<_> = told.iter().collect();
        let seen = |epoch: Epoch| told.iter().find(|(now, ..)| now.is_none_or(|now| now > epoch)).unwrap();
        // What is complete when the frontier has passed an epoch.
        assert!(seen(epochs[0]).1 >= 3 && seen(epochs[0]).2.starts_with('a'), "{told:?}");
        assert_eq!((seen(epochs[1]).1, told.last().unwrap()), (6, &(None, 6, "ab".to_owned())));
    }
}
