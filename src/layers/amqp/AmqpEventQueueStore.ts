/**
 * Queues on RabbitMQ.
 *
 * - Jobs wait in a quorum queue for each channel; a job is published when a majority of its nodes has it on disk.
 *   A queue that was declared in the last five seconds before a crash of its only node is empty after it: RabbitMQ
 *   itself has forgotten that it was there.
 * - A worker whose connection is lost has lost its jobs at once, and the attempts count, however long the `lease` is.
 *   RabbitMQ notices a frozen worker by its heartbeat. Its consumer timeout (30 minutes) ends what takes longer.
 * - What retries, is delayed, given back or dies is published anew before it is acknowledged: when the connection is
 *   lost in between, it is there twice, but for a job with a given id, of which the other copy is dropped
 *   once one has ended.
 * - **Ids** that were given are claimed in the app's replicated log before the job is published: three appends for each such
 *   job, none for the others. See `AmqpClaims` for what a crash leaves: an id that is free too early, or is refused
 *   for 20 seconds, but no duplicate of a job that is not there. A publish that fails gives its claim up; its job, if
 *   RabbitMQ has it, is dropped. Without the log no job with a given id is published.
 * - Delays pass in a ladder of queues, to 16 milliseconds, and are not shorter than asked for. What the queue of the
 *   next step refuses, as one that is not up yet after RabbitMQ was killed, is offered again after its
 *   `dead_letter_worker_publisher_confirm_timeout` (3 minutes by default), and what comes behind that, once more; `depth`
 *   may not count it meanwhile.
 * - Dead letters are in a stream, which keeps those that were redriven or discarded, too; whoever asks for them or for the
 *   depth of a channel reads the stream once, and keeps the letters in memory. It may be deleted when there are none.
 * - A job that RabbitMQ would not take together with its error is given to its dead letters by RabbitMQ, without the error.
 * - `depth` asks every worker. It fails while one does not answer, until RabbitMQ has noticed. While a node of a cluster is
 *   down on which jobs were consumed, it takes half of the connection's `timeout`.
 *
 * @since 0.2.0
 */

import type { MessagePropertyHeaders } from "amqplib"
import * as Clock from "effect/Clock"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { type Delivery, EventQueueStore, type Outcome } from "../../services/EventQueueStore.ts"
import type { Instance } from "../../services/Instance.ts"
import { getOrMake } from "../../services/internal/getOrMake.ts"
import * as Timers from "../../services/internal/Timers.ts"
import { InvalidInput, type Unavailable } from "../../services/Reason.ts"
import * as AmqpClaims from "./AmqpClaims.ts"
import { AmqpConnection, TooLarge, type Topology } from "./AmqpConnection.ts"
import * as AmqpDelays from "./AmqpDelays.ts"
import { unavailable } from "./AmqpLink.ts"
import * as AmqpQueueDepth from "./AmqpQueueDepth.ts"
import * as AmqpQueueNames from "./AmqpQueueNames.ts"
import { deadJobOf, type Job, type Letter, newJob, readJob, writeJob } from "./AmqpQueueRecord.ts"
import { AmqpQueueWorker, type Forward } from "./AmqpQueueWorker.ts"
import * as AmqpTail from "./AmqpTail.ts"
import { layer as layerLog, type ReplicatedLog } from "./log/ReplicatedLog.ts"

/** How many dead letters are redriven or discarded at a time. */
const partSize = 1_000

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
    /** How often it was told that something was written to the stream of deaths, and up to where that is read. */
    news: 1,
    readNews: 0,
    /** How many each removal that is waited for took. */
    removed: new Map<string, number>(),
    /** When delays end. */
    due: new Map<string, number>(),
    /** The queues through which workers are asked, with some of those that are gone. */
    workers: new Set<string>(),
    tails: undefined as { readonly dead: AmqpTail.Tail; readonly delays: AmqpTail.Tail } | undefined
  }
}

/** A record of the stream of deaths. What was dead-lettered by RabbitMQ itself is a job. */
type DeathRecord =
  | { readonly death: Letter }
  | { readonly removed: string; readonly deaths: ReadonlyArray<readonly [id: string, diedAt: number]> }

/**
 * Makes the store of one instance.
 *
 * @since 0.2.0
 */
export const make: Effect.Effect<EventQueueStore["Service"], never, AmqpConnection | ReplicatedLog | Scope.Scope> =
  Effect.gen(function* () {
    const amqp = yield* AmqpConnection
    const claims = yield* AmqpClaims.make
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
      if (!(delay > 0)) return send("", names.jobs, writeJob({ meta, payload }), names)
      const end = now() + delay
      return Effect.flatMap(prepare(AmqpDelays.route(names.jobs, delay).first), () => {
        const route = AmqpDelays.route(names.jobs, end - now())
        const nonce = fresh()
        const until = delay > AmqpDelays.longestDelay ? { until: end } : {}
        const job = writeJob({ meta: { ...meta, nonce, ...until }, payload })
        // Its end is written down when it has begun, so that it is not over before it is counted.
        return Effect.flatMap(send(route.exchange, route.routingKey, job, ladderFrom(route.first)), () =>
          // It is only counted by that; the job is where it should be.
          Effect.ignore(send("", names.delays, AmqpQueueDepth.dueRecord(now() + route.delay, nonce), names))
        )
      })
    }

    /** Publishes a job whose id must not be known. */
    const putClaimed = (
      channel: string,
      id: string,
      delay: number,
      dead: boolean,
      job: (claim: string) => Job
    ): Effect.Effect<boolean, Unavailable> =>
      Effect.flatMap(claims.claim(channel, id, dead), (token) => {
        if (token === undefined) return Effect.succeed(false)
        const claim = { channel, id, token }
        return put(queueOf(channel), job(token), delay).pipe(
          Effect.andThen(claims.live(claim, delay)),
          // It may be stored all the same; but nobody is told that it is.
          Effect.onError(() => claims.drop(claim)),
          Effect.as(true)
        )
      })

    const endOf = (channel: string, { meta: { claim, id, keepId } }: Job): Effect.Effect<void, Unavailable> =>
      claim === undefined ? Effect.void : claims.end({ channel, id, token: claim }, keepId)

    const forwardIn = (channel: string, queue: Queue): Forward => {
      const forward = forwarding(channel, queue)
      return (delivery, job, outcome) =>
        Effect.as(forward(delivery, job, outcome), true).pipe(
          // With what there is to be said about it.
          Effect.catchIf(isTooLarge, () => Effect.as(endOf(channel, job), false))
        )
    }

    const forwarding =
      (channel: string, queue: Queue) =>
      (delivery: Delivery, job: Job, outcome: Outcome): Effect.Effect<void, Unavailable> => {
        const { payload } = job
        const { nonce: _, until: __, ...meta } = job.meta
        const again = (meta: Job["meta"], delay: number) =>
          Effect.andThen(
            meta.claim === undefined ? Effect.void : claims.live({ channel, id: meta.id, token: meta.claim }, delay),
            put(queue, { meta: { ...meta, since: now() }, payload }, delay)
          )
        switch (outcome._tag) {
          case "ack":
            return endOf(channel, job)
          case "release":
            return again({ ...meta, attempts: delivery.attempt - 1 }, outcome.delay)
          case "retry": {
            const { error } = outcome
            const errors = { firstError: meta.firstError ?? error, lastError: error }
            return again({ ...meta, ...errors, attempts: delivery.attempt }, outcome.delay)
          }
          case "bury": {
            const { error, reason } = outcome
            const { firstError = error, lastError: _, forgiven: __, ...rest } = meta
            const death: Letter = {
              job: { meta: { ...rest, attempts: 0 }, payload },
              // A worker that was lost on the last attempt is noticed by taking the job once more.
              attempts: Math.min(delivery.attempt, delivery.maxRetries + 1),
              reason,
              firstError,
              lastError: error,
              diedAt: now()
            }
            return Effect.andThen(sendDeath(queue, { death }), endOf(channel, job))
          }
        }
      }

    /** The news of it only spares `depth` a mark in the stream of deaths, which nothing ever leaves. */
    const sendDeath = ({ names }: Queue, record: DeathRecord) =>
      Effect.andThen(
        send("", names.dead, Buffer.from(JSON.stringify(record)), names),
        Effect.ignore(send("", names.delays, AmqpQueueDepth.newsRecord(fresh()), names))
      )

    // --- what is read from the streams ---

    const onDeath = (queue: Queue) => (content: Buffer, headers: MessagePropertyHeaders | undefined) => {
      const { dead, removed } = queue
      const record = readDeath(content, reasonIn(queue.names.jobs, headers))
      if (record === undefined) return
      if ("death" in record) {
        const { id } = record.death.job.meta
        dead.delete(id)
        dead.set(id, record.death)
        return
      }
      let count = 0
      for (const [id, diedAt] of record.deaths) {
        // One that was redriven may have died again by now.
        if (dead.get(id)?.diedAt === diedAt && dead.delete(id)) count++
      }
      if (removed.has(record.removed)) removed.set(record.removed, count)
    }

    const tailsOf = (queue: Queue) =>
      Effect.gen(function* () {
        const { names, tails } = queue
        if (tails !== undefined) return tails
        const follow = (stream: string, onBegin: () => void, onRecord: AmqpTail.OnRecord) =>
          Scope.provide(AmqpTail.make(amqp, { stream, topology: names, onBegin, onRecord, name: fresh() }), scope)
        const onNewDead = () => {
          queue.dead.clear()
          queue.news++
        }
        queue.tails = {
          dead: yield* follow(names.dead, onNewDead, onDeath(queue)),
          delays: yield* follow(
            names.delays,
            () => queue.due.clear(),
            (content) => AmqpQueueDepth.readRecord(queue, content, now())
          )
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

    const remove = (queue: Queue, letters: ReadonlyArray<Letter>) =>
      Effect.gen(function* () {
        const deaths = letters.map(({ diedAt, job }) => [job.meta.id, diedAt] as const)
        const tails = yield* tailsOf(queue)
        const removed = fresh()
        queue.removed.set(removed, 0)
        return yield* sendDeath(queue, { removed, deaths }).pipe(
          Effect.andThen(tails.dead.catchUp),
          Effect.map(() => queue.removed.get(removed)!),
          Effect.ensuring(Effect.sync(() => queue.removed.delete(removed)))
        )
      }).pipe(bounded)

    /** Makes a dead letter a job again; answers whether it is one now, and its id was not somebody else's. */
    const revive = (channel: string, { job: { meta, payload } }: Letter): Effect.Effect<boolean, Unavailable> => {
      const own = meta.claim === undefined ? undefined : { channel, id: meta.id, token: meta.claim }
      // RabbitMQ itself writes down no end.
      const end = own !== undefined && claims.isLiving(own) ? claims.end(own, 0) : Effect.void
      const put = putClaimed(channel, meta.id, 0, true, (claim) => ({
        meta: { ...meta, claim, since: now() },
        payload
      }))
      return Effect.andThen(end, put)
    }

    /** Some after the other: their removals are records, and a failure leaves what was done before it done. */
    const inParts = (
      letters: ReadonlyArray<Letter>,
      take: (part: ReadonlyArray<Letter>) => Effect.Effect<number, Unavailable>
    ) =>
      Effect.gen(function* () {
        let count = 0
        for (let i = 0; i < letters.length; i += partSize) count += yield* take(letters.slice(i, i + partSize))
        return count
      })

    const chosen = (dead: ReadonlyMap<string, Letter>, ids: ReadonlyArray<string> | "all"): ReadonlyArray<Letter> =>
      (ids === "all" ? [...dead.keys()] : [...new Set(ids)]).flatMap((id) => dead.get(id) ?? [])

    return EventQueueStore.of({
      system: "rabbitmq",
      publish: (channel, job) =>
        Effect.mapError(
          job.isGiven
            ? bounded(putClaimed(channel, job.id, job.delay, false, (claim) => newJob(job, now(), claim)))
            : Effect.as(put(queueOf(channel), newJob(job, now(), undefined), job.delay), true),
          (error) =>
            error.cause instanceof TooLarge
              ? new InvalidInput({
                  field: "payload",
                  detail: `must be smaller: RabbitMQ takes messages of ${error.cause.largest} bytes, not ${error.cause.size}`
                })
              : error
        ),
      worker: (channel, { concurrency }) =>
        Effect.gen(function* () {
          const queue = queueOf(channel)
          const worker = new AmqpQueueWorker({
            names: queue.names,
            name: fresh(),
            isOver: claims.isOver,
            pausing: claims.pause(channel),
            pausedUntil: () => claims.pausedUntil(channel),
            concurrency,
            announce: (asked) => send("", queue.names.delays, AmqpQueueDepth.workerRecord(asked), queue.names),
            // Who asks does not wait for long, nor for one answer.
            reply: (routingKey, content, correlationId) =>
              void amqp.requestPublish({ exchange: "", routingKey, content, properties: { correlationId } }, () => {}),
            forward: forwardIn(channel, queue),
            now,
            timers,
            runFork: (effect) => runFork(effect)
          })
          yield* Effect.addFinalizer(() => {
            const nonces = worker.endedDelays()
            if (nonces.length === 0) return Effect.void
            const { names } = queue
            return Effect.ignore(send("", names.delays, AmqpQueueDepth.endRecord(nonces), names))
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
            const { dead, due, names, workers } = queue
            const tails = yield* tailsOf(queue)
            const catchUp = Effect.andThen(
              tails.delays.catchUp,
              Effect.suspend(() => {
                const { news, readNews } = queue
                if (readNews === news) return Effect.void
                return Effect.map(tails.dead.catchUp, () => {
                  queue.readNews = Math.max(queue.readNews, news)
                })
              })
            )
            return yield* AmqpQueueDepth.measure({
              amqp,
              names,
              due,
              workers,
              dead: () => dead.size,
              catchUp,
              now,
              runFork
            })
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
        Effect.flatMap(deadOf(channel), (dead) =>
          inParts(chosen(dead, ids), (part) =>
            Effect.gen(function* () {
              const redriven: Array<Letter> = []
              yield* Effect.onExit(
                Effect.forEach(
                  part,
                  (letter) => Effect.map(revive(channel, letter), (isNew) => isNew && redriven.push(letter)),
                  { concurrency: 500, discard: true }
                ),
                // However that ends: who redrives again must not run them again.
                () => (redriven.length > 0 ? remove(queueOf(channel), redriven) : Effect.void)
              )
              return redriven.length
            })
          )
        ),
      discard: (channel, ids) =>
        Effect.flatMap(deadOf(channel), (dead) => inParts(chosen(dead, ids), (part) => remove(queueOf(channel), part)))
    })
  })

const isTooLarge = ({ cause }: Unavailable) => cause instanceof TooLarge

/** What RabbitMQ made a dead letter of by itself, by its reason. */
const whys: Readonly<Record<string, string>> = {
  rejected: "it failed, and is too large for RabbitMQ together with the error",
  expired: "it waited longer than a policy of RabbitMQ lets it (message-ttl)",
  delivery_limit: "it was given to workers too often"
}

/** Its reason, of what was in that queue. RabbitMQ 3 tells only the first one, which is of a delay if there was one. */
const reasonIn = (queue: string, headers: MessagePropertyHeaders | undefined): string | undefined =>
  headers?.["x-last-death-reason"] ??
  (headers?.["x-first-death-queue"] === queue ? headers["x-first-death-reason"] : undefined)

const readDeath = (content: Buffer, why: string | undefined): DeathRecord | undefined => {
  const job = readJob(content)
  if (job !== undefined) {
    const error = whys[why ?? ""] ?? "RabbitMQ gave it up after it had been delayed, and does not tell why"
    const { meta, payload } = job
    return {
      death: {
        job: { meta: { ...meta, attempts: 0 }, payload },
        attempts: meta.maxRetries + 1,
        reason: why === "expired" || why === "delivery_limit" ? "WorkerLost" : "Failed",
        firstError: meta.firstError ?? error,
        lastError: error,
        // Another one each time that it is redriven.
        diedAt: meta.since ?? meta.publishedAt
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
 * Provides `EventQueueStore` on a log.
 *
 * @since 0.2.0
 */
export const layerOnLog: Layer.Layer<EventQueueStore, never, AmqpConnection | ReplicatedLog> = Layer.effect(
  EventQueueStore,
  make
)

/**
 * Provides `EventQueueStore`.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<EventQueueStore, never, AmqpConnection | Instance> = layerOnLog.pipe(
  Layer.provide(layerLog)
)
