/**
 * One subscription to a queue: takes jobs, runs their handlers, renews their
 * leases, settles them, and drains.
 *
 * A pump waits for room and for jobs, asks the gate, takes, and starts handlers.
 * Handlers run in fibers of their own; what finishes in one turn is settled in one
 * batch, while the pump goes on. Closing stops the pump, waits for the handlers,
 * interrupts those that take too long, and gives their jobs back.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Metric from "effect/Metric"
import * as Pull from "effect/Pull"
import * as References from "effect/References"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import type { Defaults } from "../Defaults.ts"
import type { JobInfo, SubscribeOptions } from "../EventQueue.ts"
import type { DeathReason, Delivery, EventQueueStore, Outcome, Settlement, Worker } from "../EventQueueStore.ts"
import { defaultBackoff, type Job, Snoozed } from "../Job.ts"
import * as Metrics from "../Metrics.ts"
import type { InvalidInput, Unavailable } from "../Reason.ts"
import { awaitStop, stopGrace } from "./fibers.ts"
import type { Count, Durations } from "./counts.ts"
import { brief, pretty } from "./pretty.ts"
import { settled } from "./settled.ts"
import { consuming, isTraced } from "./telemetry.ts"
import type * as Timers from "./Timers.ts"
import * as Validate from "./validate.ts"

/** How long to wait after the backend did not answer. */
const outageBackoff = Schedule.min([Schedule.exponential("50 millis"), Schedule.spaced("5 seconds")]).pipe(
  Schedule.jittered
)

/** After how many milliseconds a job is tried again that only a later release can read: others may have it meanwhile. */
const newerDelay = 5_000

/**
 * A job being run. `verdict` is why we stopped its handler, if we did; `over` is
 * set once its attempt is settled, which a handler that ignores interruption can outlive.
 */
interface Running {
  readonly delivery: Delivery
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  timeout: Timers.Timer | undefined
  verdict: "timeout" | "shutdown" | "stale" | undefined
  over: boolean
}

/** Whether a subscription takes jobs, as far as was asked: it is when there are some. */
export interface Gate {
  open: boolean
}

/** How a subscription is seen from outside. */
export interface Seen {
  /** Id of the instance. */
  readonly instance: string
  readonly attributes: Readonly<Record<string, string>>
  /** Those of the channel's subscriptions. */
  readonly gates: Set<Gate>
  /** What handlers take. */
  readonly durations: Durations
  /** How many attempts ended with an outcome. */
  readonly ended: (outcome: Outcome["_tag"]) => Count
}

export const run = <A, RD, RE, R, R2>(
  store: EventQueueStore["Service"],
  timers: Timers.Timers,
  address: string,
  job: Job<A, RD, RE>,
  options: SubscribeOptions<A, R, R2>,
  defaults: Defaults,
  seen: Seen
): Effect.Effect<void, InvalidInput | Unavailable, RD | R | R2 | Scope.Scope> =>
  Effect.gen(function* () {
    const lease = Validate.millis("lease", options.lease ?? defaults.queueLease ?? "30 seconds")
    const shutdownTimeout = Validate.millis(
      "shutdownTimeout",
      options.shutdownTimeout ?? defaults.shutdownTimeout ?? "30 seconds",
      {
        zero: true
      }
    )
    const idleInterval = Validate.millis("idleInterval", options.idleInterval ?? "500 millis")
    const concurrency =
      options.concurrency === "unbounded"
        ? Number.POSITIVE_INFINITY
        : Validate.integer("concurrency", options.concurrency ?? defaults.queueConcurrency ?? 1, 1)
    const invalid =
      Validate.invalidOf(lease) ??
      Validate.invalidOf(shutdownTimeout) ??
      Validate.invalidOf(idleInterval) ??
      Validate.invalidOf(concurrency)
    if (invalid !== undefined) return yield* Effect.fail(invalid)

    const context = yield* Effect.context<RD | R | R2>()
    const runFork = Effect.runForkWith(context)
    const instance = { channel: job.channel, instance: seen.instance }
    const outcomes = {
      ack: seen.ended("ack"),
      retry: seen.ended("retry"),
      release: seen.ended("release"),
      bury: seen.ended("bury")
    }
    const clock = yield* Clock.clockWith(Effect.succeed)
    const traced = isTraced(context as Context.Context<never>)
    const logWarning = (text: string, ...details: ReadonlyArray<unknown>) =>
      Effect.annotateLogs(Effect.logWarning(text, ...details), instance)

    // The worker outlives the pump: it settles what was running when the scope closes.
    const workerScope = yield* Scope.make()
    yield* Effect.addFinalizer((exit) => Scope.close(workerScope, exit))
    const worker: Worker = yield* Scope.provide(
      store.worker(address, { lease: lease as number, concurrency: concurrency as number }),
      workerScope
    )

    const running = new Set<Running>()
    /** Open while there is room for another job. */
    const room = Latch.makeUnsafe(true)
    let finished: Array<Settlement> = []
    let taking = false
    /** Set when draining begins: nothing is started from then on. */
    let closing = false
    /** Set when draining has ended: nothing is settled from then on. */
    let closed = false
    let settling: Fiber.Fiber<void> | undefined

    // --- settling ---

    /** Sends what has finished, in batches, until nothing is left; waits out an outage. */
    const settleAll = Effect.suspend(() => {
      if (finished.length === 0) return Effect.void
      let batch = finished
      finished = []
      const stale = (accepted: ReadonlyArray<boolean>) => {
        const refused = accepted.reduce((n, ok) => (ok ? n : n + 1), 0)
        return refused === 0 ? Effect.void : Metric.update(Metrics.jobsStale, refused)
      }
      const sent = worker.settle(batch)
      const known = settled(sent)
      if (known !== undefined) return stale(known.value)
      let first = true
      return Effect.suspend(() => {
        if (first) {
          first = false
          return Effect.flatMap(sent, stale)
        }
        // One by one, with what has finished since: it may be settled though something else is refused.
        batch = batch.concat(finished)
        finished = []
        const each = Effect.forEach(batch, (settlement) => Effect.exit(worker.settle([settlement])), {
          concurrency: "unbounded"
        })
        return Effect.flatMap(each, (exits): Effect.Effect<void, Unavailable> => {
          batch = batch.filter((_, i) => Exit.isFailure(exits[i]!))
          const told = stale(exits.flatMap((exit) => (Exit.isSuccess(exit) ? exit.value : [])))
          const refused = exits.find(Exit.isFailure)
          return refused === undefined ? told : Effect.andThen(told, Effect.asVoid(refused))
        })
      }).pipe(Effect.retry(outageBackoff), Effect.orDie) // the backoff never ends
    })

    const settleLoop: Effect.Effect<void> = Effect.flatMap(settleAll, () =>
      finished.length === 0 ? Effect.void : settleLoop
    )

    /** Settles soon: what finishes in one turn goes out in one batch. */
    const flush = () => {
      if (settling !== undefined || finished.length === 0 || closed) return
      const fiber = runFork(settleLoop)
      if (fiber.pollUnsafe() !== undefined) return
      settling = fiber
      fiber.addObserver(() => {
        settling = undefined
        flush()
      })
    }

    const settle = (entry: Running, outcome: Outcome) => {
      if (entry.over) return
      entry.over = true
      if (entry.timeout !== undefined) timers.cancel(entry.timeout)
      finished.push({ delivery: entry.delivery, outcome })
      outcomes[outcome._tag].value++
      if (!taking) flush()
    }

    /** What a take under way brought when draining began. */
    const giveBack = (delivery: Delivery) => {
      finished.push({ delivery, outcome: { _tag: "release", delay: 0 } })
    }

    // --- one job ---

    const free = (entry: Running) => {
      running.delete(entry)
      room.openUnsafe()
    }

    const failed = (entry: Running, reason: DeathReason, error: string) => {
      const { attempt, id, maxRetries } = entry.delivery
      if (attempt > maxRetries || reason === "Undecodable") {
        runFork(logWarning("Job became a dead letter", error).pipe(Effect.annotateLogs({ job: id, attempt, reason })))
        settle(entry, { _tag: "bury", reason, error })
        return
      }
      const delay = Effect.catchCause(retryDelay(job.backoff, attempt), (cause) =>
        Effect.andThen(
          logWarning("Backoff failed; the default is used", pretty(cause)),
          retryDelay(defaultBackoff, attempt)
        )
      )
      const retry = Effect.map(delay, (delay) => settle(entry, { _tag: "retry", delay, error }))
      runFork(
        Effect.andThen(
          Effect.annotateLogs(Effect.logDebug("Job attempt failed; it is retried", error), {
            ...instance,
            job: id,
            attempt
          }),
          retry
        )
      )
    }

    /** Stops a handler; one that does not stop loses its job, but keeps its place. */
    const stop = (entry: Running, verdict: Exclude<Running["verdict"], undefined>) => {
      if (entry.verdict !== undefined || entry.fiber === undefined) return
      entry.verdict = verdict
      timers.at(timers.now() + Duration.toMillis(stopGrace), () => leaveBehind(entry))
      entry.fiber.interruptUnsafe()
    }

    const leaveBehind = (entry: Running) => {
      if (entry.over) return
      runFork(
        logWarning("Job handler does not stop when interrupted; left behind").pipe(
          Effect.annotateLogs({ job: entry.delivery.id, attempt: entry.delivery.attempt })
        )
      )
      ended(entry, undefined)
    }

    /** The end of an attempt; without an exit when its handler was left behind. */
    const ended = (entry: Running, exit: Exit.Exit<unknown, unknown> | undefined) => {
      if (exit?._tag === "Success") return settle(entry, { _tag: "ack" })
      switch (entry.verdict) {
        case "shutdown":
          return settle(entry, { _tag: "release", delay: 0 })
        case "stale":
          entry.over = true
          return
        case "timeout":
          return failed(entry, "TimedOut", `timed out after ${entry.delivery.timeout} ms`)
        default: {
          const snoozed = exit === undefined ? undefined : Cause.squash(exit.cause)
          if (snoozed instanceof Snoozed) return settle(entry, { _tag: "release", delay: snoozed.delay })
          return failed(entry, "Failed", exit === undefined ? "interrupted" : describe(exit.cause))
        }
      }
    }

    const start = (delivery: Delivery) => {
      const entry: Running = { delivery, fiber: undefined, timeout: undefined, verdict: undefined, over: false }
      running.add(entry)
      if (delivery.attempt > delivery.maxRetries + 1) {
        settle(entry, {
          _tag: "bury",
          reason: "WorkerLost",
          error: delivery.lastError ?? "the worker was lost during the attempt"
        })
        return free(entry)
      }
      if (delivery.payload.newer) {
        runFork(Effect.annotateLogs(logWarning("Job of a later release given back"), { job: delivery.id }))
        settle(entry, { _tag: "release", delay: newerDelay })
        return free(entry)
      }
      const decoded = job.wire.decode(delivery.payload)
      const known = settled(decoded)
      const info: JobInfo = { id: delivery.id, attempt: delivery.attempt, maxAttempts: delivery.maxRetries + 1 }
      if (known !== undefined)
        return runHandler(
          entry,
          Effect.suspend(() => options.process(known.value, info))
        )
      let readable = false
      runHandler(
        entry,
        Effect.flatMap(decoded, (payload) => {
          readable = true
          return options.process(payload, info)
        }),
        () => readable
      )
    }

    const annotations = { ...Context.get(context, References.CurrentLogAnnotations), ...instance }
    const { telemetry = true } = defaults
    /** The context of an attempt; cheaper than `annotateLogs`, which changes that of a fiber and back. */
    const logging = ({ attempt, id }: Delivery): Context.Context<RD | R> =>
      telemetry ? Context.add(context, References.CurrentLogAnnotations, { ...annotations, job: id, attempt }) : context

    const spanned = <E2, R3>({ attempt, id, payload }: Delivery, handler: Effect.Effect<unknown, E2, R3>) =>
      consuming(
        payload.trace,
        "EventQueue.process",
        {
          ...seen.attributes,
          "messaging.operation.name": "process",
          "messaging.message.id": id,
          "cohort.job.attempt": attempt
        },
        handler
      )

    const runHandler = (entry: Running, handler: Effect.Effect<unknown, unknown, RD | R>, readable?: () => boolean) => {
      const { delivery } = entry
      // The wall clock costs a quarter of the other, and is exact enough for buckets of milliseconds.
      const began = telemetry ? clock.currentTimeMillisUnsafe() : 0
      const fiber = Effect.runForkWith(logging(delivery))(traced ? spanned(delivery, handler) : handler)
      const done = (exit: Exit.Exit<unknown, unknown>) => {
        if (telemetry) seen.durations.add(Math.max(clock.currentTimeMillisUnsafe() - began, 0) / 1_000)
        if (exit._tag === "Failure" && readable !== undefined && !readable() && entry.verdict === undefined) {
          failed(entry, "Undecodable", describe(exit.cause))
        } else if (!entry.over) {
          ended(entry, exit)
        }
        free(entry)
      }
      const exit = fiber.pollUnsafe()
      if (exit !== undefined) return done(exit)
      entry.fiber = fiber
      fiber.addObserver(done)
      entry.timeout = timers.at(timers.now() + delivery.timeout, () => stop(entry, "timeout"))
    }

    // --- leases ---

    const held = () => [...running].filter((entry) => !entry.over)

    yield* Effect.suspend(() => {
      const entries = held()
      if (entries.length === 0) return Effect.void
      return Effect.map(worker.renew(entries.map((entry) => entry.delivery)), (renewed) => {
        entries.forEach((entry, i) => {
          if (renewed[i] === false && !entry.over) stop(entry, "stale")
        })
      })
    }).pipe(
      Effect.catch((error) => logWarning("Job leases not renewed", error.message)),
      Effect.delay((lease as number) / 3),
      Effect.forever,
      Effect.forkIn(workerScope)
    )

    // --- taking ---

    // Taking and starting is one step: nothing taken is lost when the pump is interrupted.
    const takeAndStart = Effect.uninterruptible(
      Effect.suspend(() => {
        const taken = worker.take(Math.min((concurrency as number) - running.size, 1_000))
        const startAll = (deliveries: ReadonlyArray<Delivery>) => {
          taking = true
          if (closing) for (const delivery of deliveries) giveBack(delivery)
          else for (const delivery of deliveries) start(delivery)
          taking = false
          flush()
          if (running.size >= (concurrency as number)) room.closeUnsafe()
          return Effect.void
        }
        const known = settled(taken)
        return known === undefined ? Effect.flatMap(taken, startAll) : startAll(known.value)
      })
    )

    const isIdle =
      options.idle === undefined
        ? undefined
        : Effect.catchCause(options.idle, (cause) =>
            Effect.as(logWarning("Idle gate failed; taken as false", pretty(cause)), false)
          )

    const step: Effect.Effect<void, Unavailable, R2> =
      isIdle === undefined
        ? Effect.flatMap(room.await, () => Effect.flatMap(worker.ready, () => takeAndStart))
        : Effect.gen(function* () {
            yield* room.await
            yield* worker.ready
            gate.open = yield* isIdle
            if (gate.open) return yield* takeAndStart
            yield* worker.pause
            yield* Effect.sleep(idleInterval as number)
          })

    // --- draining ---

    const allFree = Effect.gen(function* () {
      while (running.size > 0) {
        room.closeUnsafe()
        yield* room.await
      }
    })
    const allSettled = Effect.suspend(() => {
      flush()
      return settling === undefined ? Effect.void : Effect.asVoid(Fiber.await(settling))
    })

    const gate: Gate = { open: true }
    yield* Effect.acquireRelease(
      Effect.sync(() => seen.gates.add(gate)),
      () => Effect.sync(() => seen.gates.delete(gate))
    )

    // Set up before anything is taken, so that whatever is started is also stopped.
    let pump: Fiber.Fiber<never> | undefined
    yield* Effect.addFinalizer(() =>
      Effect.gen(function* () {
        closing = true
        if (pump !== undefined) yield* awaitStop(pump, "The idle gate of a queue")
        yield* Effect.timeoutOption(allFree, shutdownTimeout as number)
        for (const entry of running) stop(entry, "shutdown")
        yield* Effect.timeoutOption(allFree, stopGrace)
        for (const entry of running) leaveBehind(entry)
        yield* Effect.timeoutOption(Effect.repeat(allSettled, { while: () => finished.length > 0 }), stopGrace)
        // What an outage did not let through comes back with its lease.
        closed = true
        if (settling !== undefined) yield* Fiber.interrupt(settling)
        yield* Effect.ignore(worker.pause)
      })
    )

    // Whatever goes wrong, a defect of the backend included, taking is tried again.
    pump = yield* step.pipe(
      Effect.catchCause((cause) =>
        Cause.hasInterruptsOnly(cause)
          ? Effect.interrupt
          : Effect.andThen(
              logWarning("Queue unavailable; trying again", brief(cause)),
              Effect.orDie(Effect.retry(Effect.sandbox(step), outageBackoff))
            )
      ),
      Effect.forever,
      Effect.provideContext(context),
      Effect.forkDetach
    )
  })

/** The delay of a retry, in milliseconds: the schedule replayed up to it. */
const retryDelay = (backoff: Schedule.Schedule<unknown, unknown>, retry: number): Effect.Effect<number> =>
  Effect.gen(function* () {
    const step = yield* Schedule.toStep(backoff)
    let delay = 0
    let now = 0
    for (let i = 1; i <= retry; i++) {
      const next = yield* Pull.catchDone(step(now, i), () => Effect.undefined)
      if (next === undefined) break
      delay = Duration.toMillis(next[1])
      now += delay
    }
    return delay
  })

/** What is kept of an error: readable, and not larger than it is worth. */
const describe = (cause: Cause.Cause<unknown>): string => pretty(cause).slice(0, 4_000)
