/**
 * `EventQueue` for small tests. See `TestStores` for what the test layers have in common.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import * as MemoryEventQueueStore from "../layers/memory/MemoryEventQueueStore.ts"
import * as EventQueue from "../services/EventQueue.ts"
import type * as Instance from "../services/Instance.ts"
import type { Job } from "../services/Job.ts"
import { Payload } from "../services/Payload.ts"
import * as TestStores from "./TestStores.ts"

/**
 * Provides `EventQueue`.
 *
 * @since 0.2.0
 */
export const layerTest: Layer.Layer<EventQueue.EventQueue | TestStores.TestStores | Instance.Instance> =
  Layer.provideMerge(EventQueue.layer, TestStores.layer)

/**
 * A job that is queued, runs or is dead.
 *
 * @since 0.2.0
 */
export interface Queued<A> {
  readonly id: string
  readonly payload: A
  readonly state: "ready" | "delayed" | "inFlight" | "dead"
  /** How often it was taken. */
  readonly attempts: number
  readonly lastError: string | undefined
}

/**
 * The jobs of a channel, dead ones last. Fails when one does not decode.
 *
 * @since 0.2.0
 */
export const jobs = <A, RD, RE>(
  job: Job<A, RD, RE>
): Effect.Effect<ReadonlyArray<Queued<A>>, Schema.SchemaError, TestStores.TestStores | RD> =>
  TestStores.TestStores.use(({ hub }) => {
    const address = TestStores.address("queue", job.channel)
    return Effect.forEach(
      MemoryEventQueueStore.inspect(hub).filter(({ channel }) => channel === address),
      ({ attempts, id, lastError, payload, state }) =>
        Effect.map(job.wire.decode(Payload.fromTree(payload)), (payload) => ({
          ...{ id, payload, state, attempts, lastError }
        }))
    )
  })

/**
 * Makes operations fail with `Unavailable`; `on` is a job, or its channel.
 *
 * @since 0.2.0
 */
export const fail = (
  operation:
    | "publish"
    | "subscribe"
    | "take"
    | "renew"
    | "settle"
    | "depth"
    | "deadLetters"
    | "deadLetter"
    | "redrive"
    | "discard"
    | "any",
  options?: TestStores.FailOptions
): Effect.Effect<void, never, TestStores.TestStores> => TestStores.fail("queue", operation, options)

/**
 * Ends what {@link fail} began.
 *
 * @since 0.2.0
 */
export const recover: Effect.Effect<void, never, TestStores.TestStores> = TestStores.recover("queue")
