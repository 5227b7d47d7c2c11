//! Sends all conversations, turn by turn, a few at a time.
//!
//! Every user asks the first question before anyone asks the second, in an order that differs from turn to turn. A
//! user's next question carries the model's real answers so far.

use futures_util::StreamExt;

use crate::chats::{Conversation, arrival_order};
use crate::client::{Answer, ChatClient, ChatOptions, Message, Role};

/// Requests in flight. Few, because the workers share a machine of perhaps two cores with everything else.
const CONCURRENCY: usize = 2;

/// One request and what came of it.
#[derive(Debug)]
pub(super) struct TurnResult {
    pub(super) conversation: usize,
    pub(super) turn: usize,
    pub(super) outcome: anyhow::Result<Answer>,
}

/// One result for each request that was sent. A conversation ends with its first failure, so there may be fewer
/// results than turns.
pub(super) async fn run_phase(
    client: &ChatClient,
    conversations: &[Conversation],
    options: &ChatOptions,
    seed: u64,
) -> Vec<TurnResult> {
    let mut histories: Vec<Option<Vec<Message>>> =
        conversations.iter().map(|one| Some(opening(one))).collect();
    let turns = conversations
        .iter()
        .map(|one| one.questions.len())
        .max()
        .unwrap_or(0);
    let mut results = Vec::new();
    for turn in 0..turns {
        let requests: Vec<(usize, Vec<Message>)> = arrival_order(conversations.len(), seed, turn)
            .into_iter()
            .filter_map(|index| {
                let question = conversations[index].questions.get(turn)?;
                let mut messages = histories[index].take()?;
                messages.push(Message::new(Role::User, question));
                Some((index, messages))
            })
            .collect();
        let mut answers = futures_util::stream::iter(requests)
            .map(async |(conversation, messages)| {
                let outcome = client.send(&messages, options).await;
                (conversation, messages, outcome)
            })
            .buffer_unordered(CONCURRENCY);
        while let Some((conversation, mut messages, outcome)) = answers.next().await {
            if let Ok(answer) = &outcome {
                messages.push(Message::new(Role::Assistant, &answer.text));
                histories[conversation] = Some(messages);
            }
            results.push(TurnResult {
                conversation,
                turn,
                outcome,
            });
        }
    }
    results
}

fn opening(conversation: &Conversation) -> Vec<Message> {
    vec![Message::new(Role::System, &conversation.system_prompt)]
}
