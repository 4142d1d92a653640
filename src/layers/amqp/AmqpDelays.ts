/**
 * Delays that pass in the broker: a ladder of queues, each of which keeps a message
 * twice as long as the one below it. A message steps into the queues that its delay is
 * the sum of, and comes out at the queue that it is for. All channels share the ladder.
 *
 * A routing key is the delay in binary, a word for each digit, and the hash of the
 * channel: `0.0.1.0.….<channel>`. The exchange of a step passes it to the step's queue
 * when its digit is 1, and otherwise on to the next one.
 */
import { createHash } from "node:crypto"
import type { Channel } from "amqplib"

/** The shortest step, in milliseconds, and how many there are: 74 hours in all. */
const unit = 16
export const steps = 24
export const longestDelay = unit * (2 ** steps - 1)

const stepName = (step: number) => `cohort.delay.v1.${step}`
/** Where messages come out. */
const due = "cohort.due.v1"

/** Keeps what it has accepted until the next queue has it. */
export const quorum = {
  "x-queue-type": "quorum",
  "x-overflow": "reject-publish",
  "x-dead-letter-strategy": "at-least-once"
} as const

/** Declares what a delay steps through that begins at a step. */
export const declare = async (channel: Channel, first: number): Promise<void> => {
  await channel.assertExchange(due, "topic", { durable: true })
  for (let step = 0; step <= first; step++) {
    const name = stepName(step)
    const next = step === 0 ? due : stepName(step - 1)
    // The highest digit comes first.
    const before = "*.".repeat(steps - 1 - step)
    await channel.assertExchange(name, "topic", { durable: true })
    await channel.assertQueue(name, {
      durable: true,
      arguments: {
        ...quorum,
        "x-message-ttl": unit * 2 ** step,
        "x-dead-letter-exchange": next,
        // Nothing consumes it; RabbitMQ 4 has a default that is meant for consumers.
        "x-delivery-limit": 1_000
      }
    })
    await channel.bindQueue(name, name, `${before}1.#`)
    await channel.bindExchange(next, name, `${before}0.#`)
  }
}

const wordOf = (queue: string): string => createHash("sha256").update(queue).digest("base64url")

/** What has to be there for messages to come out at a queue. */
export const bindOutlet = (channel: Channel, queue: string): Promise<unknown> =>
  channel
    .assertExchange(due, "topic", { durable: true })
    .then(() => channel.bindQueue(queue, due, `#.${wordOf(queue)}`))

/** Where to publish what is to come out at a queue after a delay, and the delay that it gets: some milliseconds more. */
export const route = (
  queue: string,
  millis: number
): { readonly first: number; readonly exchange: string; readonly routingKey: string; readonly delay: number } => {
  const units = Math.min(Math.max(Math.ceil(millis / unit), 1), 2 ** steps - 1)
  const digits = units.toString(2)
  return {
    first: digits.length - 1,
    exchange: stepName(digits.length - 1),
    routingKey: `${digits.padStart(steps, "0").split("").join(".")}.${wordOf(queue)}`,
    delay: units * unit
  }
}
