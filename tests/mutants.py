"""Mutants: the sources with one line broken, and for each the tests that must see it.

Whoever finds one that survives adds its row here, and the test that kills it. A row names what is
broken as a user would; the tests' names say it too. `tests/test_mutants.py` tries them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One text of one file, replaced.

    Attributes:
        name: What is broken.
        file: Where, below the root of the sources.
        before: The text; it occurs once in the file.
        after: What stands there instead.
        killers: The tests that must fail: all of them.
    """

    name: str
    file: str
    before: str
    after: str
    killers: tuple[str, ...]


RULES, EMITTER = "relu_ops/compiler/rules.py", "relu_ops/compiler/emitter.py"
AARCH64 = "relu_ops/compiler/aarch64/backend.py"
PLAN, CHECK, POOL = (f"relu_ops/native/{name}.c" for name in ("plan", "check", "pool"))
RUN, IMAGE, BUNDLE = (f"relu_ops/native/{name}.c" for name in ("run_cpu", "image_reader", "bundle"))
READING = "relu_ops/native/image_reader.h"
SOURCE, CHOOSE, MAPPING = (f"relu_ops/native/{name}.c" for name in ("source", "choose", "mapping"))
STORE, MANIFEST = "relu_ops/bundle/store.py", "relu_ops/bundle/manifest.py"
CACHE = "relu_ops/cache.py"
ARRAYS, MEMORY, TUNING, CARRIED = (
    f"relu_ops/runtime/{name}.py" for name in ("arrays", "memory", "tuning", "carried")
)
COMPARE, CALLS, JUDGE, CHECKING, EXPLAIN, DEVIATIONS = (
    f"relu_ops/verification/{name}.py"
    for name in ("compare", "calls", "judge", "checking", "explain", "deviations")
)
CASES, MIRROR = (f"relu_ops/verification/{name}.py" for name in ("cases", "mirror"))
DRIVER, SESSION, SSH = (f"relu_ops/hosts/{name}.py" for name in ("driver", "session", "ssh"))
PLANNING, MACHINES = (f"relu_ops/bench/{name}.py" for name in ("planning", "machines"))


def native(*names: str) -> tuple[str, ...]:
    """Tests of the runtime alone."""
    return tuple(f"tests/test_native.py::test_runtime[optimized-{name}]" for name in names)


def of(file: str, *names: str) -> tuple[str, ...]:
    """Tests of a file."""
    return tuple(f"tests/test_{file}.py::{name}" for name in names)


MUTANTS: tuple[Mutant, ...] = (
    # ---------------------------------------------------------------- rules
    Mutant(
        "Relu loses the sign of -0.0",
        RULES,
        "return tirx.LT(x.expr, e.zero(x.dtype).expr)",
        "return tirx.LE(x.expr, e.zero(x.dtype).expr)",
        of("semantics", "test_kernels_give_the_numbers_of_the_row[Relu]"),
    ),
    Mutant(
        "LeakyRelu of a steep slope takes the lesser of x and alpha * x for the greater",
        RULES,
        "compare = tirx.LT if is_steep else tirx.GT",
        "compare = tirx.GT",
        of("semantics", "test_wide_floats_at_every_slope[2-float32]"),
    ),
    Mutant(
        "LeakyRelu of alpha 0 is no NaN at -inf",
        RULES,
        " or alpha == 0 or np.isnan(alpha):",
        " or np.isnan(alpha):",
        of("semantics", "test_kernels_of_leaky_relu_with_alpha_zero_give_nan_at_minus_infinity"),
    ),
    Mutant(
        "Max drops the NaN of its first operand",
        RULES,
        "return e.select(tirx.Or(tirx.GE(e.widened(a), e.widened(b)), e.is_nan(a)), a, b)",
        "return e.select(tirx.GE(e.widened(a), e.widened(b)), a, b)",
        of("semantics", "test_kernels_of_max_and_min_keep_nan_and_the_first_of_equal_zeros"),
    ),
    Mutant(
        "Min chooses the second of equal zeros",
        RULES,
        "tirx.Or(tirx.LE(e.widened(a), e.widened(b)), e.is_nan(a))",
        "tirx.Or(tirx.LT(e.widened(a), e.widened(b)), e.is_nan(a))",
        of("semantics", "test_kernels_of_max_and_min_keep_nan_and_the_first_of_equal_zeros"),
    ),
    Mutant(
        "ThresholdedRelu passes its threshold",
        RULES,
        "e.select(tirx.GT(e.widened(x), e.widened(threshold)), x, e.zero(x.dtype))",
        "e.select(tirx.GE(e.widened(x), e.widened(threshold)), x, e.zero(x.dtype))",
        of("semantics", "test_kernels_give_the_numbers_of_the_row[ThresholdedRelu]"),
    ),
    Mutant(
        "Clip turns NaN into its lower bound",
        RULES,
        "x = e.select(tirx.LT(e.widened(x), e.widened(low)), low, x)",
        "x = e.select(tirx.GE(e.widened(x), e.widened(low)), x, low)",
        of("semantics", "test_kernels_of_clip_keep_nan_and_equal_zeros"),
    ),
    Mutant(
        "an integer divided by zero is itself",
        RULES,
        "tirx.Select(by_zero, e.integer(row.name, 0), quotient)",
        "tirx.Select(by_zero, a.expr, quotient)",
        of("semantics", "test_kernels_of_integer_division_never_trap"),
    ),
    Mutant(
        "the least integer divided by -1 traps",
        RULES,
        'unsafe = e.bind("bool", tirx.Or(by_zero, overflows))',
        "unsafe = by_zero",
        of("semantics", "test_kernels_of_integer_division_never_trap"),
    ),
    Mutant(
        "Cast to an integer does not saturate upwards",
        RULES,
        "saturated = tirx.Select(too_large, e.integer(target.name, int(limits.max)), converted)",
        "saturated = converted",
        of("semantics", "test_kernels_of_cast_to_integer_truncate_saturate_and_send_nan_to_zero"),
    ),
    Mutant(
        "QuantizeLinear rounds halves away from zero",
        EMITTER,
        '"llvm.roundeven"',
        '"llvm.round"',
        of("semantics", "test_kernels_of_quantize_linear_round_halves_to_even"),
    ),
    Mutant(
        "a product and a sum are rounded once, together",
        EMITTER,
        'tirx.call_llvm_pure_intrin(self.type(dtype), "llvm.arithmetic.fence", tirx.Mul(a, b))',
        "tirx.Mul(a, b)",
        of("codegen", "test_no_product_is_fused_with_a_sum[float32-scale_bias_relu-x86-64-v3]"),
    ),
    Mutant(
        "float64 is rounded twice on its way to 16 bits",
        EMITTER,
        "odd = tirx.Select(tirx.Or(above, below), truncated | u32(1), bits)",
        "odd = tirx.Select(tirx.Or(above, below), truncated, bits)",
        of("semantics", "test_kernels_round_float64_to_narrow_floats_once"),
    ),
    Mutant(
        "float16 without F16C rounds ties to odd",
        EMITTER,
        "u32((112 << 23) - 0xFFF)",
        "u32((112 << 23) - 0x1000)",
        of("semantics", "test_pairs_of_narrow_floats[Mul-float16]"),
    ),
    Mutant(
        "streaming kernels hold ordinary stores",
        EMITTER,
        "align {size}, !nontemporal !0",
        "align {size}",
        of("streaming", "test_streaming_kernels_alone_hold_streaming_stores[relu-x86-64-v2]"),
    ),
    # ---------------------------------------------------------------- AArch64
    Mutant(
        "an adrp may be the last instruction of a page",
        AARCH64,
        "_LAST_WORDS = 8",
        "_LAST_WORDS = 4",
        of("objects_aarch64", "test_code_moves_where_a_processor_would_err"),
    ),
    Mutant(
        "adr is taken for pages that it does not reach",
        AARCH64,
        "if not -_ADR_REACH <= distance < _ADR_REACH:",
        "if not -_ADR_REACH <= distance <= 2 * _ADR_REACH:",
        of("objects_aarch64", "test_near_pages_are_found_by_adr_and_others_by_adrp"),
    ),
    Mutant(
        "LLVM is not told of the multiplier that errs",
        AARCH64,
        '("+neon", "+fix-cortex-a53-835769")',
        '("+neon",)',
        of(
            "objects_aarch64",
            "test_no_product_of_64_bits_is_summed_up_right_behind_a_load[relu_int8]",
        ),
    ),
    Mutant(
        "a vector is loaded from a place that its load cannot say",
        "relu_ops/compiler/cpu/objects.py",
        'if offset % kind.multiple or section["sh_addralign"] % kind.multiple:',
        'if section["sh_addralign"] % kind.multiple:',
        of(
            "objects_aarch64",
            "test_what_an_image_cannot_hold_is_refused[a load from the middle of a vector]",
        ),
    ),
    Mutant(
        "flushing and rounding towards zero stay as the caller has them",
        "relu_ops/native/arch_aarch64.h",
        "return mode & ~UINT64_C(0x07C8BF07);",
        "return mode & ~UINT64_C(0x00C00000);",
        of("aarch64", "test_runtime[float_modes]"),
    ),
    Mutant(
        "tables are looked up a quarter too far",
        "relu_ops/compiler/aarch64/lookup.py",
        "_QUARTER * (number - 1)",
        "_QUARTER * number",
        of("aarch64", "test_any_table_at_every_length[4]"),
    ),
    Mutant(
        "instruction caches are not told of code",
        "relu_ops/native/mapping.c",
        "if (mapping->executable) arch_code_was_written(made, mapping->size);",
        "",
        of("aarch64", "test_code_that_was_written_is_told_of"),
    ),
    Mutant(
        "an image for x86-64 is said to run on AArch64",
        "relu_ops/targets.py",
        "if architecture not in self.processors:",
        "if False:",
        of("targets", "test_another_architecture"),
    ),
    # ---------------------------------------------------------------- plan
    Mutant(
        "an array of another device is taken",
        CHECK,
        "if ((int32_t)home.device_type != a->op->device_type) {",
        "if ((int32_t)home.device_type < 0 && a->op->device_type) {",
        native("devices"),
    ),
    Mutant(
        "an array at an odd address is taken",
        CHECK,
        "if (address_of(x) % (uintptr_t)itemsize == 0) return RELU_OPS_OK;",
        "if (address_of(x) % 1 == 0) return RELU_OPS_OK;",
        native("addresses"),
    ),
    Mutant(
        "strides may wrap together, though none does alone",
        CHECK,
        "if (steps > most - reach) return true;",
        "if (steps > most) return true;",
        native("strides_that_wrap"),
    ),
    Mutant(
        "a declared extent may be exceeded",
        CHECK,
        "wanted_extent(op, inputs, dim, &source) != inputs[k].shape[d]) break;",
        "wanted_extent(op, inputs, dim, &source) > inputs[k].shape[d]) break;",
        native("declared_shapes"),
    ),
    Mutant(
        "a slope may be larger than what it belongs to",
        CHECK,
        "if (status || fits(terms.rank, terms.extent, AS_IT_IS, &into)) return status;",
        "if (status || terms.rank <= into.rank) return status;",
        native("requirements"),
    ),
    Mutant(
        "an output may have two elements in one place",
        CHECK,
        "if (x->strides[d] == 0 && x->shape[d] > 1) return true;",
        "if (x->strides[d] == 0 && x->shape[d] > 2) return true;",
        native("shapes_together"),
    ),
    Mutant(
        "an output may overlap an input that it is not",
        PLAN,
        "if (!is_itself(plan, k, out)) return",
        "if (!is_itself(plan, k, out) && written.low > written.past) return",
        native("overlaps"),
    ),
    Mutant(
        "outputs may overlap each other",
        PLAN,
        "if (!are_apart(spans[k], spans[out]))",
        "if (k < op->leaf_count && !are_apart(spans[k], spans[out]))",
        native("overlaps_of_several_outputs"),
    ),
    Mutant(
        "outputs that touch count as overlapping",
        PLAN,
        "int64_t reach = stride * (x->shape[d] - 1) * itemsize;",
        "int64_t reach = stride * x->shape[d] * itemsize;",
        native("outputs_that_touch_lie_apart"),
    ),
    Mutant(
        "dimensions are merged that do not lie alike",
        PLAN,
        "alike &= plan->stride[k][last] == plan->stride[k][d] * plan->extent[d];",
        "alike &= plan->stride[k][last] >= plan->stride[k][d];",
        native("random_layouts"),
    ),
    Mutant(
        "a scale that repeats in blocks is read as if it did not",
        PLAN,
        "if (repeated) stride[d + 1] = 0;",
        "if (repeated && block > 2) stride[d + 1] = 0;",
        of("threads", "test_blocked_quantization[1]"),
    ),
    Mutant(
        "an empty output empties the others",
        PLAN,
        "plan->extent[d] = iteration->extent[d] == 0 ? 1 : iteration->extent[d];",
        "plan->extent[d] = iteration->extent[d];",
        of("operator", "test_an_output_may_be_empty_where_another_is_not"),
    ),
    # ---------------------------------------------------------------- pool
    Mutant(
        "a forked child believes in its parent's workers",
        POOL,
        "atomic_store(&pool.workers, 0);",
        "",
        native("children_start_their_own_workers", "forks_during_a_job"),
    ),
    Mutant(
        "a thief takes the chunk that its owner takes too",
        POOL,
        "return is_owner ? begin : end - 1;",
        "return begin;",
        native("late_threads_lose_chunks"),
    ),
    Mutant(
        "the caller takes no chunks from who is late",
        POOL,
        "for (int p = 1; p < threads && own + atomic_load(&pool.finished) < chunks; ++p)",
        "for (int p = 1; p < 0 && own + atomic_load(&pool.finished) < chunks; ++p)",
        native("late_threads_lose_chunks"),
    ),
    Mutant(
        "workers that sleep are not woken",
        POOL,
        "if (wake && atomic_load(&pool.sleepers) > 0) wake_sleepers();",
        "if (wake && atomic_load(&pool.sleepers) > threads) wake_sleepers();",
        native("sleepers_are_woken"),
    ),
    Mutant(
        "workers without work never sleep",
        POOL,
        "for (int round = 0; now == seen && round < SPIN_ROUNDS; ++round) {",
        "for (int round = 0; now == seen; round = 0) {",
        of("threads", "test_the_workers_sleep_after_a_call"),
    ),
    Mutant(
        "a worker that was woken stays off a processor",
        POOL,
        "if (bed->barred) set_allowed(0, bed->barred - 1, true);",
        "",
        of("concurrency", "test_workers_may_use_every_processor_again"),
    ),
    Mutant(
        "more workers are started than were asked for",
        POOL,
        "if (*wake) start_workers(threads - 1);",
        "if (*wake) start_workers(threads);",
        native("the_pool_starts_what_it_needs"),
    ),
    Mutant(
        "the core is unloaded while its workers live",
        "CMakeLists.txt",
        "-Wl,-z,nodelete ",
        "",
        of("concurrency", "test_unloading_with_living_workers_is_harmless"),
    ),
    # ---------------------------------------------------------------- run
    Mutant(
        "nothing is ever streamed past the cache",
        RUN,
        "pass.stream = plan->bytes >= settings.stream_bytes &&",
        "pass.stream = plan->bytes < 0 && plan->bytes >= settings.stream_bytes &&",
        (*native("streaming"), *of("streaming", "test_large_calls_stream[1-x86-64-v2]")),
    ),
    Mutant(
        "the caller's floating-point mode is lost in a long call",
        RUN,
        "run_range(pass, begin, end);\n  if (caller != wanted) arch_set_float_mode(caller);",
        "run_range(pass, begin, end);",
        native("float_modes"),
    ),
    Mutant(
        "a head that aligns is longer than the row",
        RUN,
        "head = at_most(n, until_aligned(op, at[op->leaf_count], op->vector_bytes));",
        "head = until_aligned(op, at[op->leaf_count], op->vector_bytes);",
        native("heads_end_where_short_rows_end"),
    ),
    Mutant(
        "the last elements of a shared job are left out",
        RUN,
        "return chunk < chunks && extent >= GRAIN * chunks ?",
        "return extent >= GRAIN * chunks ?",
        of("threads", "test_no_bit_changes_and_no_guard_word[float32-x86-64-v2-two threads]"),
    ),
    Mutant(
        "outer dimensions are walked and not walked back",
        RUN,
        "advance(plan, data, d, -extent[d]);",
        "advance(plan, data, d, 1 - extent[d]);",
        of("operator", "test_dimensions_that_cannot_be_merged_are_walked_and_walked_back"),
    ),
    Mutant(
        "small calls heed no settings",
        RUN,
        "!relu_ops_settings_matter(elements * op->element_bytes);",
        "elements <= ALIGN_BYTES;",
        native("small_calls_heed_the_settings"),
    ),
    Mutant(
        "a short output may overlap an input",
        RUN,
        "!(apart || (at == out && moves && size == out_size))",
        "!(apart || at)",
        native("overlaps"),
    ),
    Mutant(
        "a short vector may lie anywhere",
        RUN,
        "if (!at || (at & (size - 1)) ||",
        "if (!at ||",
        native("vectors_that_are_refused"),
    ),
    Mutant(
        "a transposed input is read row by row",
        RUN,
        "if (row && row < inner) return plan->bytes >= ACROSS_FROM_BYTES ? across : none;",
        "if (row && row < inner) return plan->bytes >= INT64_MAX ? across : none;",
        native("a_transposed_input_is_read_in_blocks"),
    ),
    Mutant(
        "a host is given more threads than it has",
        RUN,
        "return plan->host && plan->host->count < most ? plan->host->count : most;",
        "return most;",
        native("host_threads"),
    ),
    # ---------------------------------------------------------------- reader
    Mutant(
        "a table may end after the image",
        READING,
        "if (table.at > r->size || size > r->size - table.at)",
        "if (table.at > r->size || size > r->size)",
        of("image_reader", "test_one_lie[operators[1].kernels[0].patterns.at]"),
    ),
    Mutant(
        "two operators may have one name",
        IMAGE,
        "distinct = strcmp(names[k - 1].text, names[k].text) != 0 ||",
        "distinct = names[k - 1].text != names[k].text ||",
        of("image_reader", "test_operators_of_one_name_in_two_places_are_refused"),
    ),
    Mutant(
        "half a surrogate pair is taken for a character",
        READING,
        "(code < 0xD800 || code > 0xDFFF)",
        "(code < 0xD800 || code > 0xDBFF)",
        of("image_reader", "test_texts_are_those_that_python_decodes"),
    ),
    Mutant(
        "a small image may keep its reader busy for hours",
        READING,
        "if (bytes > RELU_OPS_MOST_READ - r->read)",
        "if (bytes > RELU_OPS_MOST_READ)",
        of("image_reader", "test_shared_tables_do_not_keep_the_reader_busy"),
    ),
    Mutant(
        "a damaged file is read",
        BUNDLE,
        "if (strcmp(found.hex, line->digest) == 0) return RELU_OPS_OK;",
        "if (strlen(found.hex) == strlen(line->digest)) return RELU_OPS_OK;",
        of("bundle_reader", "test_a_damaged_file"),
    ),
    Mutant(
        "a pinned digest is not compared",
        BUNDLE,
        "if (!digest || strcasecmp(found->hex, digest) == 0) return RELU_OPS_OK;",
        "if (!digest || strlen(found->hex) == strlen(digest)) return RELU_OPS_OK;",
        of("bundle_reader", "test_the_digest_can_be_pinned"),
    ),
    Mutant(
        "a file that is not listed is overlooked",
        SOURCE,
        "return *first ? refuse_file(source->shown, first) : RELU_OPS_OK;",
        "return strlen(first) > 255 ? refuse_file(source->shown, first) : RELU_OPS_OK;",
        of("bundle_reader", "test_what_is_not_listed_is_refused"),
    ),
    Mutant(
        "the least that can run is taken for the best",
        CHOOSE,
        "relu_ops_image_requirement_count(one) >= relu_ops_image_requirement_count(*image)",
        "relu_ops_image_requirement_count(one) <= relu_ops_image_requirement_count(*image)",
        of("bundle_reader", "test_the_best_target_is_chosen"),
    ),
    Mutant(
        "mapped code can be written by who finds its file",
        MAPPING,
        "F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE",
        "F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW",
        of("image_reader", "test_what_is_mapped_is_sealed"),
    ),
    # ---------------------------------------------------------------- bundle
    Mutant(
        "build replaces a folder that is no bundle",
        STORE,
        "if os.path.lexists(final) and not is_bundle(final):",
        "if os.path.isfile(final) and not is_bundle(final):",
        of("bundle", "test_what_is_not_a_bundle_is_not_replaced"),
    ),
    Mutant(
        "a bundle is renamed before its files are on the disk",
        STORE,
        "        os.fsync(file.fileno())\n",
        "",
        of("bundle", "test_files_are_on_the_disk_before_they_have_their_name"),
    ),
    Mutant(
        "a manifest may list files that are not there",
        STORE,
        '_check_agrees("files", {SUMS, manifest.FILE, *found.files}, self.contents)',
        "",
        of("bundle", "test_a_manifest_of_another_bundle"),
    ),
    Mutant(
        "a key may stand twice in a manifest",
        MANIFEST,
        "if len(result) != len(pairs):",
        "if len(result) > len(pairs):",
        of("bundle", "test_a_duplicate_key"),
    ),
    Mutant(
        "two models' files differ in the case of a letter alone",
        MANIFEST,
        "if not plain or file.lower() in files:",
        "if not plain or file in files.values():",
        of("bundle", "test_names_of_model_files"),
    ),
    # ---------------------------------------------------------------- cache
    Mutant(
        "one target's bundle is found for another",
        CACHE,
        "parts = (model, target.encode(), *(one.encode() for one in made_by))",
        "parts = (model, *(one.encode() for one in made_by))",
        of("cache", "test_key_depends_on_everything"),
    ),
    Mutant(
        "the parts of a key run together",
        CACHE,
        'b"".join(len(part).to_bytes(8, "little") + part for part in parts)',
        'b"".join(parts)',
        of("cache", "test_key_depends_on_everything"),
    ),
    Mutant(
        "a cache that a group can write is used",
        CACHE,
        "status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)",
        "status.st_mode & stat.S_IWOTH",
        of("cache", "test_a_folder_that_others_can_write_is_not_used[509]"),
    ),
    Mutant(
        "who waited for a compilation compiles again",
        CACHE,
        'with _locked(folder / f"{key}.lock"):\n            if (found := _read(path)) is not None:',
        'with _locked(folder / f"{key}.lock"):\n            if not path.parent.exists():',
        of("cache", "test_eight_threads_on_one_cold_key_compile_once"),
    ),
    Mutant(
        "what is used does not count as used",
        CACHE,
        "        os.utime(path)\n",
        "        path.stat()\n",
        of("cache", "test_the_oldest_go_when_the_limit_is_reached"),
    ),
    Mutant(
        "what others are writing is removed",
        CACHE,
        "path.stat().st_mtime < a_day_ago:",
        "path.stat().st_mtime > 0:",
        of("cache", "test_a_compilation_that_died_leaves_nothing_for_good"),
    ),
    # ---------------------------------------------------------------- verification
    Mutant(
        "verify takes any number for a NaN",
        COMPARE,
        "return equal | ((ours != ours) & (theirs != theirs))",
        "return equal | ((ours != ours) | (theirs != theirs))",
        of("verification", "test_a_broken_operator_is_found[drop_nan]"),
    ),
    Mutant(
        "a byte written after an output is not seen",
        CALLS,
        "for side in (memory[:_GUARD], memory[-_GUARD:])",
        "for side in (memory[:_GUARD],)",
        of("verification", "test_a_byte_beside_the_output_is_found[False]"),
    ),
    Mutant(
        "what another target wrote passes for a result",
        CALLS,
        "            _spoil(y, expected)\n",
        "            pass\n",
        of("verification", "test_what_another_target_wrote_passes_for_no_result"),
    ),
    Mutant(
        "an output that the operator makes is not compared",
        CHECKING,
        "return [given] if all_same(given, own) else [given, own]",
        "return [given]",
        of("verification", "test_an_output_of_its_own_that_is_wrong_is_found"),
    ),
    Mutant(
        "a reproduction leaves out that a check was exhaustive",
        JUDGE,
        'every = " --exhaustive" if case.exhaustive else ""',
        'every = ""',
        of("verification", "test_a_wrong_bit_in_an_exhaustive_check_is_found"),
    ),
    Mutant(
        "a deviation of one operator excuses every other",
        DEVIATIONS,
        "if row.engine != engine or node.proto.op_type not in row.operators:",
        "if row.engine != engine:",
        of("verification_deviations", "test_a_row_excuses_no_other_operator"),
    ),
    Mutant(
        "a deviation of one dtype excuses every other",
        DEVIATIONS,
        "if node.dtype in row.dtypes:",
        "if node.dtype:",
        of("verification_deviations", "test_a_row_excuses_no_other_dtype"),
    ),
    Mutant(
        "a deviation of one referee excuses every other",
        DEVIATIONS,
        "if row.engine != engine or node.proto.op_type not in row.operators:",
        "if node.proto.op_type not in row.operators:",
        of("verification_deviations", "test_a_row_excuses_no_other_referee"),
    ),
    Mutant(
        "one element that is explained excuses its neighbours",
        EXPLAIN,
        "wrong &= ~explained",
        "wrong &= not explained.any()",
        of("verification_deviations", "test_one_element_that_is_explained_excuses_no_other"),
    ),
    Mutant(
        "a graph that was misunderstood passes",
        EXPLAIN,
        "if not all_same(by_nodes(program, inputs), contract):",
        "if not all_same(contract, contract):",
        of("verification_deviations", "test_a_graph_that_was_misunderstood_is_found"),
    ),
    Mutant(
        "where a cut case is no multiple of its part, the rest is not compared",
        CASES,
        "counts = [-(-n // m) for n, m in zip(whole, small, strict=True)]",
        "counts = [n // m for n, m in zip(whole, small, strict=True)]",
        of("verification_shapes", "test_a_cut_case_repeats_itself"),
    ),
    # ---------------------------------------------------------------- runtime
    Mutant(
        "a gradient is lost without a word",
        ARRAYS,
        "if x.requires_grad and torch.is_grad_enabled():",
        "if x.requires_grad and not torch.is_grad_enabled():",
        of("torch", "test_a_gradient_is_never_lost"),
    ),
    Mutant(
        "masked elements are computed with",
        CARRIED,
        "mask.dtype == np.bool_ and mask.any():",
        "mask.dtype == np.bool_ and mask.all():",
        of("carried", "test_masked_arrays"),
    ),
    Mutant(
        "an input is overwritten before another output reads it",
        ARRAYS,
        "            len(outs) == 1\n            and array.ctypes.data",
        "            array.ctypes.data",
        of("operator", "test_one_of_several_outs_may_be_an_input"),
    ),
    Mutant(
        "memory that is still in use is handed out again",
        MEMORY,
        "_in_use[key] = weakref.ref(whole, give_back)",
        "give_back(_in_use.setdefault(key, None))",
        of("memory", "test_results_stay_apart"),
    ),
    Mutant(
        "free memory is kept without a limit",
        MEMORY,
        "while sum(map(len, tuple(_free))) > MOST_FREE_BYTES:",
        "while sum(map(len, tuple(_free))) > MOST_FREE_BYTES << 20:",
        of("memory", "test_what_is_kept_has_a_limit"),
    ),
    Mutant(
        "thresholds of another machine are heeded",
        TUNING,
        "return known.thresholds if known.cpu == targets.this_machine().cpu else None",
        "return known.thresholds if targets.this_machine().cpu else None",
        of("tuning", "test_another_machine_is_not_heeded"),
    ),
    # ---------------------------------------------------------------- other machines
    Mutant(
        "an array lies there at another place of a line than here",
        DRIVER,
        "start = -whole.ctypes.data % GUARD",
        "start = 1",
        of("hosts", "test_it_lies_there_as_it_does_here"),
    ),
    Mutant(
        "what is written beside an output there stays unseen",
        MIRROR,
        "if not np.array_equal(kept, found):",
        "if kept.size != found.size:",
        of("hosts", "test_a_byte_written_beside_an_output_is_found"),
    ),
    Mutant(
        "a lost connection is taken for a wrong result",
        CHECKING,
        "            except HostError:\n                raise\n",
        "",
        of("hosts", "test_a_connection_that_is_lost_in_the_middle[verify]"),
    ),
    Mutant(
        "a host with another version is taken",
        SESSION,
        "if version != __version__:",
        "if not version:",
        of("hosts", "test_another_version"),
    ),
    Mutant(
        "the driver works on where nobody asks any more",
        DRIVER,
        "    except EOFError:\n        os._exit(0)\n",
        "    except EOFError:\n        return\n",
        of("hosts", "test_a_long_work_ends_when_nobody_asks_any_more"),
    ),
    Mutant(
        "a host is asked for a password",
        SSH,
        '    "-oBatchMode=yes",',
        '    "-oBatchMode=no",',
        of("hosts", "test_the_program_on_the_path_is_ssh"),
    ),
    Mutant(
        "a host's name can be an option of ssh",
        SSH,
        'r"[^-\\s,][^\\s,]*"',
        'r"[^\\s,][^\\s,]*"',
        of("hosts", "test_a_host_is_no_option[-oProxyCommand=touch x]"),
    ),
    Mutant(
        "the target is the best of this machine, and not of the other",
        PLANNING,
        "target = targets.resolve(level, place.machine)",
        "target = targets.resolve(level)",
        of("hosts", "test_the_target_is_the_best_that_is_there"),
    ),
    Mutant(
        "what a host says reaches the terminal as it is",
        SESSION,
        'c if c.isprintable() or c == "\\n" else',
        "c if c else",
        of("hosts", "test_what_a_host_says_cannot_touch_the_terminal"),
    ),
    Mutant(
        "two records of one host have the same name",
        MACHINES,
        "if host and hosts.count(host) == 1 else",
        "if host else",
        of("hosts", "test_machines_of_several_targets_side_by_side"),
    ),
)
