/** Locks on the server that a url names, Redis or RabbitMQ. */
import type * as Duration from "effect/Duration"
import * as Layer from "effect/Layer"
import type { Instance, LockStore } from "../../src/index.ts"
import { AmqpConnection, AmqpLockStore } from "../../src/layers/amqp/index.ts"
import { RedisConnection, RedisLockStore } from "../../src/layers/redis/index.ts"

export const lockStore = (
  url: string,
  options: { readonly timeout: Duration.Input; readonly lazy?: boolean }
): Layer.Layer<LockStore.LockStore, unknown, Instance.Instance> =>
  url.startsWith("amqp:")
    ? Layer.provide(AmqpLockStore.layer, AmqpConnection.layer({ url, heartbeat: "1 second", ...options }))
    : Layer.provide(RedisLockStore.layer, RedisConnection.layer({ url, ...options }))
