/**
 * Queues on RabbitMQ.
 *
 * - Jobs wait in a quorum queue for each channel; a job is published when a majority of its nodes has it on disk.
 *   A queue that was declared in the last five seconds before a crash of its only node is empty after it: RabbitMQ
 *   itself has forgotten that it was there.
 * - A worker whose connection is lost has lost its jobs at once, and the attempts count. The broker notices a frozen
 *   worker by its heartbeat. No lease outlives a connection.
 * - What retries, is delayed, given back or dies is published anew before it is acknowledged: when the connection is
 *   lost in between, it is there twice.
 * - Delays pass in a ladder of queues, to 16 milliseconds.
 * - Dead letters are in a stream; whoever asks for them or for the depth of a channel reads the stream once, and keeps
 *   the letters in memory.
 * - Ids do not deduplicate.
 *
 * @since 0.2.0
 */
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { EventQueueStore } from "../../services/EventQueueStore.ts"
import { getOrMake } from "../../services/internal/getOrMake.ts"
import * as Timers from "../../services/internal/Timers.ts"
import type { Unavailable } from "../../services/Reason.ts"
import { AmqpConnection, type Topology } from "./AmqpConnection.ts"
import * as AmqpDelays from "./AmqpDelays.ts"
import { unavailable } from "./AmqpLink.ts"
import * as AmqpQueueNames from "./AmqpQueueNames.ts"
import { deadJobOf, type Job, type Letter, newJob, readJob, writeJob } from "./AmqpQueueRecord.ts"
import { type Answer, AmqpQueueWorker, type Forward } from "./AmqpQueueWorker.ts"
import * as AmqpTail from "./AmqpTail.ts"

/** How long a delayed job may be on its way out of the ladder, in milliseconds. */
const lateness = 300

const replies = "amq.rabbitmq.reply-to"

type Queue = ReturnType<typeof makeQueue>

const makeQueue = (channel: string) => {
  const names = AmqpQueueNames.make(channel)
  const ladders: Array<Topology> = []
  return {
    names,
    /** With as much of the ladder as a delay needs. */
    ladderFrom: (first: number): Topology =>
      (ladders[first] ??= {
        declare: async (channel) => {
          await names.declare(channel)
          await AmqpDelays.declare(channel, first)
        }
      }),
    /** Deaths that nobody has undone, oldest first. */
    dead: new Map<string, Letter>(),
    /** How many each removal took. */
    removed: new Map<string, number>(),
    /** When delays end. */
    due: new Map<string, number>(),
    tails: undefined as { readonly dead: AmqpTail.Tail; readonly delays: AmqpTail.Tail } | undefined
  }
}

/** A record of the stream of deaths. What was dead-lettered by RabbitMQ itself is a job. */
type DeathRecord =
  | { readonly death: Letter }
  | { readonly removed: string; readonly ids: ReadonlyArray<string> | "all" }

/**
 * Makes the store of one instance.
 *
 * @since 0.2.0
 */
export const make: Effect.Effect<EventQueueStore["Service"], never, AmqpConnection | Scope.Scope> = Effect.gen(
  function* () {
    const amqp = yield* AmqpConnection
    const scope = yield* Effect.scope
    const clock = yield* Clock.clockWith(Effect.succeed)
    const runFork = Effect.runForkWith(yield* Effect.context<never>())
    const timers = yield* Timers.make
    const now = () => clock.currentTimeMillisUnsafe()
    const nonce = SecureRandom.uuidV4Unsafe()
    let count = 0
    const fresh = () => `${nonce}.${(count++).toString(36)}`

    const queues = new Map<string, Queue>()
    const queueOf = (channel: string) => getOrMake(queues, channel, () => makeQueue(channel))

    const bounded = <A>(effect: Effect.Effect<A, Unavailable>): Effect.Effect<A, Unavailable> =>
      Effect.timeoutOrElse(effect, {
        duration: amqp.timeout,
        orElse: () => Effect.fail(unavailable(`no answer within ${amqp.timeout} ms`))
      })

    const send = (exchange: string, routingKey: string, content: Buffer, topology: Topology) =>
      Effect.flatMap(
        amqp.publish({
          exchange,
          routingKey,
          content,
          properties: { persistent: true, mandatory: true },
          topology
        }),
        (routed) => (routed ? Effect.void : Effect.fail(unavailable("the queue is gone")))
      )

    /** The first delay on a broker makes the ladder, which takes longer than the delay may be. */
    let prepared = -1
    const prepare = (first: number): Effect.Effect<void, Unavailable> =>
      first <= prepared
        ? Effect.void
        : Effect.map(
            amqp.call((channel) => AmqpDelays.declare(channel, first), { retry: true }),
            () => {
              prepared = Math.max(prepared, first)
            }
          )

    /** Puts a job into its queue, now or after a delay. */
    const put = (
      { ladderFrom, names }: Queue,
      { meta, payload }: Job,
      delay: number
    ): Effect.Effect<void, Unavailable> => {
      const { nonce: _, until: __, ...rest } = meta
      if (!(delay > 0)) return send("", names.jobs, writeJob({ meta: rest, payload }), names)
      const end = now() + delay
      return Effect.flatMap(prepare(AmqpDelays.route(names.jobs, delay).first), () => {
        const route = AmqpDelays.route(names.jobs, end - now())
        const nonce = fresh()
        const until = delay > AmqpDelays.longestDelay ? { until: end } : {}
        const job = writeJob({ meta: { ...rest, nonce, ...until }, payload })
        // Its end is written down when it has begun, so that it is not over before it is counted.
        return Effect.flatMap(send(route.exchange, route.routingKey, job, ladderFrom(route.first)), () =>
          send("", names.delays, Buffer.from(`${now() + route.delay} ${nonce}`), names)
        )
      })
    }

    const forwardIn =
      (queue: Queue): Forward =>
      (delivery, { meta, payload }, outcome) => {
        switch (outcome._tag) {
          case "release":
            return put(queue, { meta: { ...meta, attempts: delivery.attempt - 1 }, payload }, outcome.delay)
          case "retry": {
            const { error } = outcome
            const errors = { firstError: meta.firstError ?? error, lastError: error }
            return put(queue, { meta: { ...meta, ...errors, attempts: delivery.attempt }, payload }, outcome.delay)
          }
          case "bury": {
            const { error, reason } = outcome
            const { firstError = error, lastError: _, nonce: __, until: ___, ...rest } = meta
            const death: Letter = {
              job: { meta: { ...rest, attempts: 0 }, payload },
              // A worker that was lost on the last attempt is noticed by taking the job once more.
              attempts: Math.min(delivery.attempt, delivery.maxRetries + 1),
              reason,
              firstError,
              lastError: error,
              diedAt: now()
            }
            return send("", queue.names.dead, record({ death }), queue.names)
          }
        }
      }

    const record = (record: DeathRecord) => Buffer.from(JSON.stringify(record))

    // --- what is read from the streams ---

    const onDeath = (queue: Queue) => (content: Buffer) => {
      const { dead, removed } = queue
      const record = readDeath(content)
      if (record === undefined) return
      if ("death" in record) {
        const { id } = record.death.job.meta
        dead.delete(id)
        dead.set(id, record.death)
        return
      }
      let count = 0
      for (const id of record.ids === "all" ? [...dead.keys()] : record.ids) if (dead.delete(id)) count++
      if (record.removed.startsWith(nonce)) removed.set(record.removed, count)
    }

    const onDelay =
      ({ due }: Queue) =>
      (content: Buffer) => {
        const [at, nonce] = content.toString().split(" ") as [string, string]
        if (Number(at) + lateness > now()) due.set(nonce, Number(at))
      }

    const tailsOf = (queue: Queue) =>
      Effect.gen(function* () {
        const { names, tails } = queue
        if (tails !== undefined) return tails
        const follow = (stream: string, onRecord: (content: Buffer) => void) =>
          Scope.provide(AmqpTail.make(amqp, { stream, topology: names, onRecord, name: fresh() }), scope)
        queue.tails = {
          dead: yield* follow(names.dead, onDeath(queue)),
          delays: yield* follow(names.delays, onDelay(queue))
        }
        return queue.tails
      })

    const deadOf = (channel: string) =>
      bounded(
        Effect.gen(function* () {
          const queue = queueOf(channel)
          const tails = yield* tailsOf(queue)
          yield* tails.dead.catchUp
          return queue.dead
        })
      )

    const remove = (queue: Queue, ids: ReadonlyArray<string>) =>
      Effect.gen(function* () {
        const tails = yield* tailsOf(queue)
        const removed = fresh()
        yield* send("", queue.names.dead, record({ removed, ids }), queue.names)
        yield* tails.dead.catchUp
        const count = queue.removed.get(removed) ?? 0
        queue.removed.delete(removed)
        return count
      })

    const chosen = (dead: ReadonlyMap<string, Letter>, ids: ReadonlyArray<string> | "all"): ReadonlyArray<Letter> =>
      (ids === "all" ? [...dead.keys()] : [...new Set(ids)]).flatMap((id) => dead.get(id) ?? [])

    // --- what the workers hold ---

    /** Asks every worker there is, and counts what is ready. */
    const askWorkers = ({ names }: Queue) =>
      amqp.call(
        async (channel) => {
          const workers = await names.declareWorkers(channel)
          const answers: Array<Answer> = []
          if (workers > 0) {
            let enough = () => {}
            const all = new Promise<void>((resolve) => {
              enough = resolve
            })
            const { consumerTag } = await channel.consume(
              replies,
              (message) => {
                if (message === null) return
                answers.push(JSON.parse(message.content.toString()) as Answer)
                if (answers.length >= workers) enough()
              },
              { noAck: true }
            )
            channel.publish(AmqpQueueNames.ask, names.workers, Buffer.from("?"), { replyTo: replies })
            // One that is frozen does not answer before the broker has noticed.
            const late = Effect.runFork(Effect.andThen(Effect.sleep(amqp.timeout / 3), Effect.sync(enough)))
            await all
            late.interruptUnsafe()
            await channel.cancel(consumerTag)
          }
          return answers
        },
        { retry: true }
      )

    const countReady = ({ names }: Queue) =>
      amqp.call(
        async (channel) => {
          await names.declare(channel)
          return names.declareJobs(channel)
        },
        { retry: true }
      )

    const versionOf = (answers: ReadonlyArray<Answer>) => answers.reduce((sum, { version }) => sum + version, 0)

    return EventQueueStore.of({
      system: "rabbitmq",
      publish: (channel, job) => Effect.as(put(queueOf(channel), newJob(job, now()), job.delay), true),
      worker: (channel, { concurrency }) =>
        Effect.gen(function* () {
          const queue = queueOf(channel)
          const worker = new AmqpQueueWorker({
            names: queue.names,
            concurrency,
            forward: forwardIn(queue),
            now,
            timers,
            runFork: (effect) => runFork(effect)
          })
          const sessions = yield* amqp.open({ setup: worker.setup, onDown: worker.onDown })
          worker.attach(sessions)
          yield* sessions.ready
          return worker
        }),
      depth: (channel) =>
        bounded(
          Effect.gen(function* () {
            const queue = queueOf(channel)
            // A job on its way from one place to another is not to be overlooked: until nothing moves.
            let before = yield* askWorkers(queue)
            for (let i = 0; ; i++) {
              const tails = yield* tailsOf(queue)
              yield* Effect.all([tails.delays.catchUp, tails.dead.catchUp], { concurrency: 2 })
              const ended = new Set(before.flatMap(({ ended }) => ended))
              const time = now()
              let delayed = 0
              for (const [nonce, due] of queue.due) {
                if (ended.has(nonce) || due + lateness <= time) queue.due.delete(nonce)
                else delayed++
              }
              const ready = yield* countReady(queue)
              const after = yield* askWorkers(queue)
              const isQuiet = before.length === after.length && versionOf(before) === versionOf(after)
              if (isQuiet || i === 10) {
                return {
                  ready,
                  delayed,
                  inFlight: after.reduce((sum, { held }) => sum + held, 0),
                  dead: queue.dead.size
                }
              }
              before = after
            }
          })
        ),
      deadLetters: (channel, { limit, offset }) =>
        Effect.map(deadOf(channel), (dead) => [...dead.values()].slice(offset, offset + limit).map(deadJobOf)),
      deadLetter: (channel, id) =>
        Effect.map(deadOf(channel), (dead) => {
          const letter = dead.get(id)
          return letter === undefined ? undefined : deadJobOf(letter)
        }),
      redrive: (channel, ids) =>
        Effect.flatMap(deadOf(channel), (dead) => {
          const queue = queueOf(channel)
          const letters = chosen(dead, ids)
          if (letters.length === 0) return Effect.succeed(0)
          return Effect.flatMap(
            Effect.forEach(letters, ({ job }) => put(queue, job, 0), { concurrency: 500, discard: true }),
            () =>
              remove(
                queue,
                letters.map(({ job }) => job.meta.id)
              )
          )
        }),
      discard: (channel, ids) =>
        Effect.flatMap(deadOf(channel), (dead) => {
          const letters = chosen(dead, ids)
          if (letters.length === 0) return Effect.succeed(0)
          return bounded(
            remove(
              queueOf(channel),
              letters.map(({ job }) => job.meta.id)
            )
          )
        })
    })
  }
)

const readDeath = (content: Buffer): DeathRecord | undefined => {
  const job = readJob(content)
  if (job !== undefined) {
    const error = "it was given to workers too often"
    const { meta, payload } = job
    return {
      death: {
        job: { meta: { ...meta, attempts: 0 }, payload },
        attempts: meta.maxRetries + 1,
        reason: "WorkerLost",
        firstError: meta.firstError ?? error,
        lastError: error,
        diedAt: meta.publishedAt
      }
    }
  }
  try {
    return JSON.parse(content.toString()) as DeathRecord
  } catch {
    return undefined
  }
}

/**
 * Provides `EventQueueStore`.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<EventQueueStore, never, AmqpConnection> = Layer.effect(EventQueueStore, make)
