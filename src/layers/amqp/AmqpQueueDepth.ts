/**
 * How much a channel holds. RabbitMQ tells what is ready, the workers what they hold,
 * and a stream when delayed jobs are due, and through which queues the workers are asked: whoever delays a job, or begins
 * to work, writes that down. A worker's queue goes with its connection, on whichever node of a cluster.
 *
 * A job on its way from one place to another is not overlooked: everybody is asked until
 * nothing moves, and nobody is missing. While a worker does not answer, as one that is frozen, there is no
 * answer.
 */
import type { ConsumeMessage, Message } from "amqplib"
import * as Effect from "effect/Effect"
import type { Depth } from "../../services/EventQueueStore.ts"
import type { Unavailable } from "../../services/Reason.ts"
import type { AmqpConnection } from "./AmqpConnection.ts"
import type { Names } from "./AmqpQueueNames.ts"
import type { Answer } from "./AmqpQueueWorker.ts"

/** How long a delayed job may be on its way out of the ladder, in milliseconds. */
const lateness = 5_000
/** Before everybody is asked again, when somebody was missing. */
const pauseMillis = 20
const ended = "ended"
const worker = "worker"
const news = "news"
const replies = "amq.rabbitmq.reply-to"

/** A record of the stream of delays: when one is due. */
export const dueRecord = (at: number, nonce: string): Buffer => Buffer.from(`${at} ${nonce}`)
/** A record of the stream of delays: a worker has seen the ends of these. */
export const endRecord = (nonces: ReadonlyArray<string>): Buffer => Buffer.from([ended, ...nonces].join(" "))

/** A record of the stream of delays: there is a worker, which is asked through this queue. */
export const workerRecord = (queue: string): Buffer => Buffer.from(`${worker} ${queue}`)

/** A record of the stream of delays: something was written to the stream of deaths. Each is another. */
export const newsRecord = (nonce: string): Buffer => Buffer.from(`${news} ${nonce}`)

/** What the stream of delays tells. */
interface Told {
  readonly due: Map<string, number>
  readonly workers: Set<string>
  news: number
}

/** After how many more of them what is long over is looked for. */
const sweepSize = 1_000

/** Whoever never asks for the depth again must not remember for ever. */
const forget = (due: Map<string, number>, now: number): void => {
  for (const [nonce, at] of due) if (at + lateness <= now) due.delete(nonce)
}

/** Reads a record of the stream of delays. */
export const readRecord = (told: Told, content: Buffer, now: number): void => {
  const { due, workers } = told
  const [at, ...nonces] = content.toString().split(" ")
  if (at === news) told.news++
  for (const nonce of nonces) {
    if (at === worker) workers.add(nonce)
    else if (at === ended) due.delete(nonce)
    else if (Number(at) + lateness > now) {
      due.set(nonce, Number(at))
      if (due.size % sweepSize === 0) forget(due, now)
    }
  }
}

/** Asks every worker there is; `undefined` when one does not answer. Those that are gone are forgotten. */
const askWorkers = (
  amqp: AmqpConnection["Service"],
  workers: Set<string>,
  runFork: (effect: Effect.Effect<void>) => Timeout
) =>
  amqp.call(
    async (channel) => {
      const answers: Array<Answer> = []
      const missing = new Set(workers)
      if (missing.size === 0) return answers
      let enough = () => {}
      const all = new Promise<void>((resolve) => {
        enough = resolve
      })
      const isAnswered = (queue: string) => {
        const isNew = missing.delete(queue)
        if (missing.size === 0) enough()
        return isNew
      }
      const onReturn = ({ fields }: Message) => {
        workers.delete(fields.routingKey)
        isAnswered(fields.routingKey)
      }
      const onAnswer = (message: ConsumeMessage | null) => {
        if (message === null || !isAnswered(message.properties.correlationId as string)) return
        answers.push(JSON.parse(message.content.toString()) as Answer)
      }
      channel.on("return", onReturn)
      const { consumerTag } = await channel.consume(replies, onAnswer, { noAck: true })
      for (const queue of missing) {
        channel.publish("", queue, Buffer.from("?"), { replyTo: replies, correlationId: queue, mandatory: true })
      }
      const late = runFork(Effect.andThen(Effect.sleep(amqp.timeout / 4), Effect.sync(enough)))
      await all
      late.interruptUnsafe()
      await channel.cancel(consumerTag)
      channel.off("return", onReturn)
      return missing.size > 0 ? undefined : answers
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
  /** When delays end, as far as {@link readRecord} has read. */
  readonly due: Map<string, number>
  /** Through which queues workers are asked, as far as {@link readRecord} has read. */
  readonly workers: Set<string>
  readonly dead: () => number
  /** Reads the streams up to now. */
  readonly catchUp: Effect.Effect<unknown, Unavailable>
  readonly now: () => number
  readonly runFork: (effect: Effect.Effect<void>) => Timeout
}): Effect.Effect<Depth, Unavailable> =>
  Effect.gen(function* () {
    const { amqp, catchUp, dead, due, names, now, runFork, workers } = options
    const asking = Effect.suspend(() => askWorkers(amqp, workers, runFork))
    /** A quorum queue goes on to count consumers on a node that is down: nobody answers for them. */
    const believed = now() + amqp.timeout / 2
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
      const isLeft = after === undefined || (consumerCount > sum(({ consumers }) => consumers) && now() < believed)
      if (isLeft) yield* Effect.sleep(pauseMillis)
      if (isLeft || !(isQuiet || i >= 10)) continue
      const time = now()
      let delayed = 0
      let overdue = 0
      forget(due, time)
      for (const at of due.values()) {
        if (at > time) delayed++
        else overdue++
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
