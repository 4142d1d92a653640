/**
 * Broadcast through Redis PUBLISH.
 *
 * A message that had left when a connection was lost is not sent again: at most
 * once. One to the publisher's own instance as well waits for its subscription, if
 * that was lost; and those that it publishes later wait behind it. On a Redis Cluster every node passes every message on.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Payload } from "../../services/Payload.ts"
import { type Message, PubSubTransport } from "../../services/PubSubTransport.ts"
import { RedisConnection } from "./RedisConnection.ts"
import { encodeKey } from "./wire.ts"

/**
 * Makes the transport.
 *
 * @since 0.2.0
 */
export const make: Effect.Effect<PubSubTransport["Service"], never, RedisConnection> = Effect.gen(function* () {
  const redis = yield* RedisConnection
  const keyOf = (channel: string) => `cohort:${encodeKey(channel)}`

  return PubSubTransport.of({
    system: "redis",
    publish: (channel, message) => redis.publish(keyOf(channel), write(message), message.toSelf),
    subscribe: (channel, onMessage, onGap) =>
      redis.subscribe(
        keyOf(channel),
        (text) => {
          const message = read(text)
          if (message !== undefined) onMessage(message)
        },
        onGap
      )
  })
})

/** `1` or `0` (to self), the length of the publisher's id, a colon, the id, and the payload. */
const write = ({ from, payload, toSelf }: Message): string =>
  `${toSelf ? "1" : "0"}${from.length}:${from}${payload.json}`

/** What is not a broadcast of ours is nobody's. */
const read = (text: string): Message | undefined => {
  const colon = text.indexOf(":")
  const length = Number(text.slice(1, colon))
  if (colon < 2 || !Number.isInteger(length)) return undefined
  const start = colon + 1
  return {
    toSelf: text.charCodeAt(0) === 49,
    from: text.slice(start, start + length),
    payload: Payload.fromJson(text.slice(start + length))
  }
}

/**
 * Provides `PubSubTransport`.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<PubSubTransport, never, RedisConnection> = Layer.effect(PubSubTransport, make)
