/**
 * An alarm for queues that nobody works on.
 *
 * A channel is unserved when it has jobs that are ready, and for `after` (default 1 minute) no live instance has
 * taken from it: none subscribes, or the `idle` gate of everyone that does is closed, as the worker mode of each
 * may have it. One instance, the oldest, looks every `interval` (default 10 seconds) at all the channels that the live
 * instances have published to or subscribe to; it logs a warning for each that becomes unserved.
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
import { EventQueue, type EventQueueError } from "./EventQueue.ts"
import { Instance } from "./Instance.ts"
import * as Timers from "./internal/Timers.ts"
import * as Validate from "./internal/validate.ts"
import * as Job from "./Job.ts"
import { Membership } from "./Membership.ts"
import * as Metrics from "./Metrics.ts"
import { InvalidInput } from "./Reason.ts"

/**
 * A channel that nobody works on.
 *
 * @since 0.2.0
 */
export interface Unserved {
  readonly channel: string
  /** How many jobs wait. */
  readonly ready: number
}

/**
 * The channels that nobody works on.
 *
 * @since 0.2.0
 */
export class UnservedQueues extends Context.Service<
  UnservedQueues,
  {
    /** As this instance last saw it; always empty on all instances but the oldest. */
    readonly current: Effect.Effect<ReadonlyArray<Unserved>>
  }
>()("cohort/services/UnservedQueues") {}

/**
 * Options of {@link layerWith}.
 *
 * @since 0.2.0
 */
export interface Options {
  /** How long jobs may wait for someone who serves them; zero or more, finite. Default 1 minute. */
  readonly after?: Duration.Input | undefined
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
): Effect.Effect<UnservedQueues["Service"], InvalidInput, Membership | EventQueue | Instance | Scope.Scope> =>
  Effect.gen(function* () {
    const after = Validate.millis("after", options.after ?? "1 minute", { zero: true })
    const interval = Validate.millis("interval", options.interval ?? "10 seconds")
    if (after instanceof InvalidInput) return yield* Effect.fail(after)
    if (interval instanceof InvalidInput) return yield* Effect.fail(interval)
    const membership = yield* Membership
    const queue = yield* EventQueue
    const { id } = yield* Instance
    const { now } = yield* Timers.make

    /** Since when a channel has jobs and nobody who serves it. */
    const since = new Map<string, number>()
    let current: ReadonlyArray<Unserved> = []

    const look = Effect.gen(function* () {
      const members = yield* membership.members
      const queues = members[0]?.id === id ? members.flatMap(({ queues }) => queues) : []
      const served = new Set(queues.filter(({ serving }) => serving).map(({ channel }) => channel))
      const idle = new Set(queues.map(({ channel }) => channel).filter((channel) => !served.has(channel)))
      for (const channel of since.keys()) if (!idle.has(channel)) since.delete(channel)

      const found: Array<Unserved> = []
      for (const channel of idle) {
        const { ready } = yield* queue.depth(Job.make(channel, Schema.Json))
        if (ready === 0) {
          since.delete(channel)
          continue
        }
        const first = since.get(channel) ?? now()
        since.set(channel, first)
        if (now() - first >= after) found.push({ channel, ready })
      }
      for (const { channel, ready } of found) {
        if (current.some((known) => known.channel === channel)) continue
        yield* Effect.logWarning("Jobs wait, and no live instance serves them").pipe(
          Effect.annotateLogs({ channel, ready })
        )
      }
      current = found
      yield* Metric.update(Metrics.queuesUnserved, found.length)
    })

    yield* look.pipe(
      // Who cannot be asked is not known to wait.
      Effect.catch((error: EventQueueError) => Effect.logDebug("Unserved queues not looked for", error)),
      Effect.delay(interval),
      Effect.forever,
      Effect.forkScoped
    )
    return UnservedQueues.of({ current: Effect.sync(() => current) })
  })

/**
 * Provides {@link UnservedQueues}.
 *
 * @since 0.2.0
 */
export const layerWith = (
  options: Options
): Layer.Layer<UnservedQueues, InvalidInput, Membership | EventQueue | Instance> =>
  Layer.effect(UnservedQueues, make(options))

/**
 * Provides {@link UnservedQueues} with the default options.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<UnservedQueues, InvalidInput, Membership | EventQueue | Instance> = layerWith({})
