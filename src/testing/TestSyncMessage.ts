/**
 * `SyncMessage` for small tests. See `TestStores` for what the test layers have in common.
 *
 * The first message from elsewhere is from a sender that the instance has not heard of: it causes a `resync`, as in
 * production.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import type * as Instance from "../services/Instance.ts"
import { Payload } from "../services/Payload.ts"
import * as SyncMessage from "../services/SyncMessage.ts"
import * as TestPubSub from "./TestPubSub.ts"
import * as TestStores from "./TestStores.ts"

/**
 * Provides `SyncMessage`.
 *
 * @since 0.2.0
 */
export const layerTest: Layer.Layer<SyncMessage.SyncMessage | TestStores.TestStores | Instance.Instance> = Layer.orDie(
  Layer.provideMerge(SyncMessage.layer, TestPubSub.layerTest)
)

/**
 * What the instance has told the others on a channel, in order. Fails when it does not decode.
 *
 * @since 0.2.0
 */
export const published = <A, RD, RE>(
  channel: SyncMessage.SyncChannel<A, RD, RE>
): Effect.Effect<ReadonlyArray<A>, Schema.SchemaError, TestStores.TestStores | RD> =>
  TestStores.TestStores.use(({ published }) => {
    const address = TestStores.address("sync", channel.channel)
    return Effect.forEach(
      published.filter((message) => message.address === address),
      ({ payload }) => channel.wire.decode(Payload.fromTree((payload.tree as { readonly data: unknown }).data))
    )
  })

/**
 * Another instance tells of a change.
 *
 * @since 0.2.0
 */
export const deliver = <A, RD, RE>(
  channel: SyncMessage.SyncChannel<A, RD, RE>,
  message: A
): Effect.Effect<void, SyncMessage.SyncMessageError, TestStores.TestStores | RE> =>
  TestStores.TestStores.use(({ elsewhere }) => Effect.provide(SyncMessage.publish(channel, message), elsewhere))

/**
 * The instance's connection goes and comes back, so it resyncs.
 *
 * @since 0.2.0
 */
export const gap: Effect.Effect<void, never, TestStores.TestStores> = TestPubSub.gap

/**
 * Makes operations fail with `Unavailable`; `on` is a sync channel, or its name.
 *
 * @since 0.2.0
 */
export const fail = (
  operation: "publish" | "subscribe" | "any",
  options?: TestStores.FailOptions
): Effect.Effect<void, never, TestStores.TestStores> => TestStores.fail("sync", operation, options)

/**
 * Ends what {@link fail} began.
 *
 * @since 0.2.0
 */
export const recover: Effect.Effect<void, never, TestStores.TestStores> = TestStores.recover("sync")
