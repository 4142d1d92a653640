import { RedisEventQueueStore } from "../../src/layers/redis/index.ts"
import { suite } from "../contract/queue.ts"
import { redisPart } from "./redis.ts"

suite(redisPart(RedisEventQueueStore.layer), { propertyRuns: 20 })
