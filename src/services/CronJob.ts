/**
 * Work at the times of a cron expression, once per cluster.
 *
 * ```ts
 * yield* CronJob.make("nightly-report", "0 3 * * *", ({ at }) => writeReport(at))
 * ```
 *
 * At each time every instance publishes the same job, whose id is the name and the time; the queue keeps the first
 * and drops the others as duplicates. What `EventQueue` promises holds for it: it runs at least once, on any
 * instance that subscribes, is retried, and becomes a dead letter after its attempts.
 *
 * - Clocks of instances may differ by up to an hour before one runs the same time again; it begins by the fastest.
 * - While the queue is away a time is tried again until the next one is due. A time at which no instance was running is
 *   passed over. An instance that stood still, or whose clock was set forward, goes on with the last time that was due.
 * - A time is known to have been published until an hour after the next one is due, so that who was cut off or stood still
 *   does not publish it again; on RabbitMQ for a day at most, as all ids are.
 * - Runs of different times may overlap when one takes longer than the interval; take a `Lock` where that matters.
 *
 * @since 0.2.0
 */
import * as Clock from "effect/Clock"
import * as Cron from "effect/Cron"
import type * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as EventQueue from "./EventQueue.ts"
import type { Instance } from "./Instance.ts"
import * as Validate from "./internal/validate.ts"
import * as Job from "./Job.ts"
import { InvalidInput } from "./Reason.ts"
import * as WorkerMode from "./WorkerMode.ts"

/**
 * One run.
 *
 * @since 0.2.0
 */
export interface Run {
  /** The time it is for, not when it began. */
  readonly at: DateTime.Utc
  /** 1-based. */
  readonly attempt: number
}

/**
 * Options of {@link make}.
 *
 * @since 0.2.0
 */
export interface Options extends Pick<Job.Options, "timeout" | "maxRetries" | "backoff"> {
  /** The IANA time zone that an expression is meant in. Default UTC. */
  readonly timeZone?: string | undefined
  /** The service this is work of: instances whose worker mode does not serve it run nothing. Default: all do. */
  readonly service?: string | undefined
}

const Time = Schema.Struct({ at: Schema.DateTimeUtcFromMillis })

/** How long a time is known to have been published after the next one is due, and so how far clocks may differ. */
const keepId = Duration.hours(1)

/** Longest sleep, in milliseconds: the wall clock may be set meanwhile. */
const longestSleep = 60_000

const outage = Schedule.min([Schedule.exponential("200 millis"), Schedule.spaced("10 seconds")]).pipe(Schedule.jittered)

/**
 * The job of a cron job: what its dead letters are listed and redriven by.
 *
 * @since 0.2.0
 */
export const job = (name: string, options: Options = {}): Job.Job<typeof Time.Type> =>
  Job.make(name === "" ? "" : Validate.address("cron", name), Time, {
    timeout: options.timeout,
    maxRetries: options.maxRetries,
    backoff: options.backoff,
    keepId
  })

/**
 * Runs `work` at the times of `cron`, until the scope closes; what runs then drains. Fails with an `EventQueueError`,
 * its reason `InvalidInput` where the name or the expression is wrong.
 *
 * @since 0.2.0
 */
export const make = <E, R>(
  name: string,
  cron: string | Cron.Cron,
  work: (run: Run) => Effect.Effect<unknown, E, R>,
  options: Options = {}
): Effect.Effect<void, EventQueue.EventQueueError, EventQueue.EventQueue | Instance | R | Scope.Scope> =>
  Effect.gen(function* () {
    const invalid = (detail: string) =>
      Effect.fail(new EventQueue.EventQueueError({ reason: new InvalidInput({ field: "cron", detail }) }))
    const times = typeof cron === "string" ? Cron.parse(cron, options.timeZone ?? "UTC") : Result.succeed(cron)
    if (Result.isFailure(times)) return yield* invalid(times.failure.message)
    const start = yield* Clock.currentTimeMillis
    // The thirtieth of February can be written, and never comes.
    if (Result.isFailure(Result.try(() => Cron.next(times.success, start)))) return yield* invalid("it never comes")
    const runs = job(name, options)

    yield* EventQueue.subscribe(runs, {
      process: ({ at }, { attempt }) => work({ at, attempt }),
      idle: options.service === undefined ? undefined : WorkerMode.serving(options.service)
    })

    const sleepUntil = (at: number): Effect.Effect<void> =>
      Effect.flatMap(Clock.currentTimeMillis, (now) =>
        at <= now ? Effect.void : Effect.flatMap(Effect.sleep(Math.min(at - now, longestSleep)), () => sleepUntil(at))
      )

    const publish = (at: Date, following: Date) =>
      EventQueue.publish(
        // Somebody may publish it as late as the next one is due.
        { ...runs, keepId: runs.keepId + following.getTime() - at.getTime() },
        { at: Schema.decodeSync(Schema.DateTimeUtcFromMillis)(at.getTime()) },
        { id: at.toISOString() }
      ).pipe(
        Effect.tapError((error) => Effect.logWarning("Cron job not published; trying again", error.message)),
        Effect.retry(outage)
      )

    const from = (last: Date): Effect.Effect<never, EventQueue.EventQueueError, EventQueue.EventQueue> =>
      Effect.gen(function* () {
        const at = Cron.next(times.success, last)
        yield* sleepUntil(at.getTime())
        const following = Cron.next(times.success, at)
        const now = yield* Clock.currentTimeMillis
        if (following.getTime() <= now) {
          // This process stood still, or its clock was set. In one step: it may be years.
          const interval = following.getTime() - at.getTime()
          return yield* from(new Date(Math.max(at.getTime(), now - interval)))
        }
        yield* Effect.raceFirst(publish(at, following), sleepUntil(following.getTime()))
        return yield* from(at)
      })

    yield* from(new Date(start)).pipe(Effect.annotateLogs({ cron: name }), Effect.forkScoped)
  })
