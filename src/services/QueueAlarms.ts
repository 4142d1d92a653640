/**
 * Alarms for queues: jobs that nobody works on, and dead letters that nobody looks at.
 *
 * - A channel is _unserved_ when it has jobs that are ready, and for `after` (default 1 minute) no live instance has
 *   taken from it: none subscribes, or the `idle` gate of everyone that does is closed, as the worker mode of each
 *   may have it.
 * - A channel is _dying_ when it has more dead letters than `deadLetters` (default 100).
 *
 * One instance, the oldest, looks every `interval` (default 10 seconds) at all the channels that the live instances
 * have published to or subscribe to. It logs a warning for each alarm that begins, and is `degraded` in its `Health`.
 * What it saw is in `Metrics.queueJobs`, on that instance only. A channel that cannot be looked at keeps its alarms, and
 * is not in the metric.
 *
 * @since 0.2.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { EventQueue } from "./EventQueue.ts"
import type { Depth } from "./EventQueueStore.ts"
import * as Health from "./Health.ts"
import { Instance } from "./Instance.ts"
import * as Counts from "./internal/counts.ts"
import * as Timers from "./internal/Timers.ts"
import * as Validate from "./internal/validate.ts"
import * as Job from "./Job.ts"
import { Membership } from "./Membership.ts"
import * as Metrics from "./Metrics.ts"
import { InvalidInput } from "./Reason.ts"

/**
 * A channel that wants looking at, and how many jobs or dead letters it has.
 *
 * @since 0.2.0
 */
export interface Alarm {
  readonly kind: "unserved" | "dying"
  readonly channel: string
  readonly count: number
}

/**
 * The alarms.
 *
 * @since 0.2.0
 */
export class QueueAlarms extends Context.Service<
  QueueAlarms,
  {
    /** As this instance last saw them; always empty on all instances but the oldest. */
    readonly current: Effect.Effect<ReadonlyArray<Alarm>>
  }
>()("cohort/services/QueueAlarms") {}

/**
 * Options of {@link layerWith}.
 *
 * @since 0.2.0
 */
export interface Options {
  /** How long jobs may wait for someone who serves them; zero or more, finite. Default 1 minute. */
  readonly after?: Duration.Input | undefined
  /** How many dead letters a channel may have. Default 100. */
  readonly deadLetters?: number | undefined
  /** How often to look; positive and finite. Default 10 seconds. */
  readonly interval?: Duration.Input | undefined
}

/**
 * Makes the service.
 *
 * @since 0.2.0
 */
export const make = (
  options: Options = {}
): Effect.Effect<QueueAlarms["Service"], InvalidInput, Membership | EventQueue | Instance | Scope.Scope> =>
  Effect.gen(function* () {
    const after = Validate.millis("after", options.after ?? "1 minute", { zero: true })
    const interval = Validate.millis("interval", options.interval ?? "10 seconds")
    const deadLetters = Validate.integer("deadLetters", options.deadLetters ?? 100, 0)
    if (after instanceof InvalidInput) return yield* Effect.fail(after)
    if (interval instanceof InvalidInput) return yield* Effect.fail(interval)
    if (deadLetters instanceof InvalidInput) return yield* Effect.fail(deadLetters)
    const membership = yield* Membership
    const queue = yield* EventQueue
    const { id } = yield* Instance
    const { now } = yield* Timers.make

    const setJobs = yield* Counts.makeGauges(Metrics.queueJobs)

    /** Since when a channel has jobs and nobody who serves it. */
    const since = new Map<string, number>()
    let current: ReadonlyArray<Alarm> = []

    const depthOf = (channel: string) =>
      queue.depth(Job.make(channel, Schema.Json)).pipe(
        Effect.catch((error) =>
          Effect.as(Effect.annotateLogs(Effect.logDebug("Queue not looked at", error), { channel }), undefined)
        ),
        Effect.map((depth) => ({ channel, depth }))
      )

    const look = Effect.gen(function* () {
      const members = yield* membership.members
      const queues = members[0]?.id === id ? members.flatMap(({ queues }) => queues) : []
      const served = new Set(queues.filter(({ serving }) => serving).map(({ channel }) => channel))
      const channels = new Set(queues.map(({ channel }) => channel))
      for (const channel of since.keys()) if (!channels.has(channel)) since.delete(channel)

      const depths = yield* Effect.forEach(channels, depthOf, { concurrency: 10 })
      const found: Array<Alarm> = []
      for (const { channel, depth } of depths) {
        if (depth === undefined) {
          // What cannot be asked is as it was.
          found.push(...current.filter((alarm) => alarm.channel === channel))
          continue
        }
        const { dead, ready } = depth
        if (dead > deadLetters) found.push({ kind: "dying", channel, count: dead })
        if (ready === 0 || served.has(channel)) {
          since.delete(channel)
          continue
        }
        const first = since.get(channel) ?? now()
        since.set(channel, first)
        if (now() - first >= after) found.push({ kind: "unserved", channel, count: ready })
      }
      for (const alarm of found) {
        if (current.some(({ channel, kind }) => channel === alarm.channel && kind === alarm.kind)) continue
        yield* Effect.annotateLogs(Effect.logWarning(textOf(alarm)), { channel: alarm.channel })
      }
      current = found
      setJobs(depths.flatMap(seriesOf))
      yield* Metric.update(Metrics.queuesUnserved, found.filter(({ kind }) => kind === "unserved").length)
    })

    yield* Health.register(
      "queues",
      Effect.sync(() => (current.length === 0 ? Health.up : Health.degraded(current.map(textOf).join("; "))))
    )
    yield* look.pipe(Effect.delay(interval), Effect.forever, Effect.forkScoped)
    return QueueAlarms.of({ current: Effect.sync(() => current) })
  })

/** A channel's depth, as series of the metric; none where it is not known. */
const seriesOf = ({ channel, depth }: { readonly channel: string; readonly depth: Depth | undefined }) =>
  depth === undefined
    ? []
    : Object.entries({
        ready: depth.ready,
        delayed: depth.delayed,
        in_flight: depth.inFlight,
        dead: depth.dead
      }).map(([state, value]) => ({
        attributes: { "messaging.destination.name": channel, "cohort.job.state": state },
        value
      }))

const textOf = ({ channel, count, kind }: Alarm): string =>
  kind === "unserved"
    ? `${count} jobs of "${channel}" wait, and no live instance serves them`
    : `"${channel}" has ${count} dead letters`

/**
 * Provides {@link QueueAlarms}.
 *
 * @since 0.2.0
 */
export const layerWith = (
  options: Options
): Layer.Layer<QueueAlarms, InvalidInput, Membership | EventQueue | Instance> =>
  Layer.effect(QueueAlarms, make(options))

/**
 * Provides {@link QueueAlarms} with the default options.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<QueueAlarms, InvalidInput, Membership | EventQueue | Instance> = layerWith({})
