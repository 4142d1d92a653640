/**
 * `PubSub` for small tests. See `TestStores` for what the test layers have in common.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import type * as Instance from "../services/Instance.ts"
import * as PubSub from "../services/PubSub.ts"
import type { Topic } from "../services/Topic.ts"
import * as TestStores from "./TestStores.ts"

/**
 * Provides `PubSub`.
 *
 * @since 0.2.0
 */
export const layerTest: Layer.Layer<PubSub.PubSub | TestStores.TestStores | Instance.Instance> = Layer.provideMerge(
  PubSub.layer,
  TestStores.layer
)

/**
 * What the instance has published to the others on a topic, in order. Fails when it does not decode.
 *
 * @since 0.2.0
 */
export const published = <A, RD, RE>(
  topic: Topic<A, RD, RE>
): Effect.Effect<ReadonlyArray<A>, Schema.SchemaError, TestStores.TestStores | RD> =>
  TestStores.TestStores.use(({ published }) => {
    const address = TestStores.address(topic.kind, topic.channel)
    return Effect.forEach(
      published.filter((message) => message.address === address),
      ({ payload }) => topic.wire.decode(payload)
    )
  })

/**
 * Another instance publishes a message.
 *
 * @since 0.2.0
 */
export const deliver = <A, RD, RE>(
  topic: Topic<A, RD, RE>,
  message: A
): Effect.Effect<void, PubSub.PubSubError, TestStores.TestStores | RE> =>
  TestStores.TestStores.use(({ elsewhere }) => Effect.provide(PubSub.publish(topic, message), elsewhere))

/**
 * The instance's connection goes and comes back: a gap for all who subscribe, also to sync messages.
 *
 * @since 0.2.0
 */
export const gap: Effect.Effect<void, never, TestStores.TestStores> = TestStores.TestStores.use(({ hub }) =>
  Effect.andThen(hub.disconnect("here"), hub.reconnect("here"))
)

/**
 * Makes operations fail with `Unavailable`; `on` is a topic, or its channel.
 *
 * @since 0.2.0
 */
export const fail = (
  operation: "publish" | "subscribe" | "any",
  options?: TestStores.FailOptions
): Effect.Effect<void, never, TestStores.TestStores> => TestStores.fail("topic", operation, options)

/**
 * Ends what {@link fail} began.
 *
 * @since 0.2.0
 */
export const recover: Effect.Effect<void, never, TestStores.TestStores> = TestStores.recover("topic")
