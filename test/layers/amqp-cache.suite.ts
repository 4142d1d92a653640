import * as Layer from "effect/Layer"
import * as AmqpCacheStore from "../../src/layers/amqp/AmqpCacheStore.ts"
import * as AmqpLockStore from "../../src/layers/amqp/AmqpLockStore.ts"
import { AmqpPubSubTransport } from "../../src/layers/amqp/index.ts"
import * as Log from "../../src/layers/amqp/log/ReplicatedLog.ts"
import { suite } from "../../src/testing/contracts/cache.ts"
import { amqpPart } from "./amqp.ts"

// Exclusive loads take locks, and near caches tell each other.
const stores = Layer.mergeAll(AmqpCacheStore.layerOnLog({ reads: "latest" }), AmqpLockStore.layerOnLog())
suite(amqpPart(Layer.mergeAll(Layer.provide(stores, Log.layer), AmqpPubSubTransport.layer)))
