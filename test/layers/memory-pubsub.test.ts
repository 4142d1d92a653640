import { suite, timing } from "../contract/pubsub.ts"
import { memory } from "./memory.ts"

suite(memory)
timing(memory)
