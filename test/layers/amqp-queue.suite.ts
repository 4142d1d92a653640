import { AmqpEventQueueStore } from "../../src/layers/amqp/index.ts"
import { suite } from "../contract/queue.ts"
import { amqpPart } from "./amqp.ts"

suite(amqpPart(AmqpEventQueueStore.layer), { propertyRuns: 20 })
