import { suite } from "../contract/pubsub.ts"
import { redis } from "./redis.ts"

suite(redis)
