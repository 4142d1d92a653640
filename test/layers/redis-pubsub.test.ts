import { suite } from "../../src/testing/contracts/pubsub.ts"
import { redis } from "./redis.ts"

suite(redis)
