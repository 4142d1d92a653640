import { AmqpEventQueueStore } from "../../src/layers/amqp/index.ts"
import { suite } from "../../src/testing/contracts/queue.ts"
import { amqpPart } from "./amqp.ts"

suite(amqpPart(AmqpEventQueueStore.layer), { propertyRuns: 20 })
