import { suite } from "../contract/sync.ts"
import { memory } from "./memory.ts"

suite(memory)
