/**
 * How much a channel holds. RabbitMQ tells what is ready, the workers what they hold,
 * and a stream when delayed jobs are due: whoever delays one writes that down.
 *
 * A job on its way from one place to another is not overlooked: everybody is asked until
 * nothing moves, and nobody is missing. While a worker does not answer, as one that is frozen, there is no
 * answer.
 */
import * as Effect from "effect/Effect"
import type { Depth } from "../../services/EventQueueStore.ts"
import type { Unavailable } from "../../services/Reason.ts"
import type { AmqpConnection } from "./AmqpConnection.ts"
import { ask, type Names } from "./AmqpQueueNames.ts"
import type { Answer } from "./AmqpQueueWorker.ts"

/** How long a delayed job may be on its way out of the ladder, in milliseconds. */
const lateness = 5_000
const ended = "ended"
const replies = "amq.rabbitmq.reply-to"

/** A record of the stream of delays: when one is due. */
export const dueRecord = (at: number, nonce: string): Buffer => Buffer.from(`${at} ${nonce}`)
/** A record of the stream of delays: a worker has seen the ends of these. */
export const endRecord = (nonces: ReadonlyArray<string>): Buffer => Buffer.from([ended, ...nonces].join(" "))

/** Reads a record of the stream of delays. */
export const readDelay = (due: Map<string, number>, content: Buffer, now: number): void => {
  const [at, ...nonces] = content.toString().split(" ")
  for (const nonce of nonces) {
    if (at === ended) due.delete(nonce)
    else if (Number(at) + lateness > now) due.set(nonce, Number(at))
  }
}

/** Asks every worker there is; `undefined` when one does not answer. */
const askWorkers = (amqp: AmqpConnection["Service"], names: Names, runFork: (effect: Effect.Effect<void>) => Timeout) =>
  amqp.call(
    async (channel) => {
      const workers = await names.declareWorkers(channel)
      const answers = new Map<string, Answer>()
      if (workers > 0) {
        let enough = () => {}
        const all = new Promise<void>((resolve) => {
          enough = resolve
        })
        const { consumerTag } = await channel.consume(
          replies,
          (message) => {
            if (message === null) return
            const answer = JSON.parse(message.content.toString()) as Answer
            answers.set(answer.name, answer)
            if (answers.size >= workers) enough()
          },
          { noAck: true }
        )
        channel.publish(ask, names.workers, Buffer.from("?"), { replyTo: replies })
        const late = runFork(Effect.andThen(Effect.sleep(amqp.timeout / 4), Effect.sync(enough)))
        await all
        late.interruptUnsafe()
        await channel.cancel(consumerTag)
      }
      return answers.size < workers ? undefined : [...answers.values()]
    },
    { retry: true }
  )

interface Timeout {
  readonly interruptUnsafe: () => void
}

const versionsOf = (answers: ReadonlyArray<Answer> | undefined) =>
  answers
    ?.map(({ name, version }) => `${name} ${version}`)
    .sort()
    .join()

/** Never ends while somebody is missing: whoever calls it bounds it. */
export const measure = (options: {
  readonly amqp: AmqpConnection["Service"]
  readonly names: Names
  /** When delays end, as far as {@link readDelay} has read. */
  readonly due: Map<string, number>
  readonly dead: () => number
  /** Reads the streams up to now. */
  readonly catchUp: Effect.Effect<unknown, Unavailable>
  readonly now: () => number
  readonly runFork: (effect: Effect.Effect<void>) => Timeout
}): Effect.Effect<Depth, Unavailable> =>
  Effect.gen(function* () {
    const { amqp, catchUp, dead, due, names, now, runFork } = options
    const asking = askWorkers(amqp, names, runFork)
    const counting = amqp.call(
      async (channel) => {
        await names.declare(channel)
        return names.declareJobs(channel)
      },
      { retry: true }
    )
    let before = yield* asking
    for (let i = 0; ; i++) {
      yield* catchUp
      for (const { ended } of before ?? []) for (const nonce of ended) due.delete(nonce)
      const { consumerCount, messageCount } = yield* counting
      const after = yield* asking
      const isQuiet = versionsOf(before) === versionsOf(after)
      before = after
      const sum = (of: (answer: Answer) => number) => (after ?? []).reduce((sum, answer) => sum + of(answer), 0)
      // RabbitMQ has still to take back what others held, or to notice that they are gone.
      const isLeft = after === undefined || consumerCount > sum(({ consumers }) => consumers)
      if (isLeft || !(isQuiet || i >= 10)) continue
      const time = now()
      let delayed = 0
      let overdue = 0
      for (const [nonce, at] of due) {
        if (at > time) delayed++
        else if (at + lateness > time) overdue++
        else due.delete(nonce)
      }
      return {
        ready: messageCount,
        // What is due and was not taken is ready by now, or on its way.
        delayed: delayed + Math.max(0, overdue - messageCount),
        inFlight: sum(({ held }) => held),
        dead: dead()
      }
    }
  })
