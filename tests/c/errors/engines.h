/* Errors of engines: an ONNX Runtime that cannot be loaded, and configurations and models that are refused. */
/* ---- ONNX Runtime --------------------------------------------------------------------------------------------- */

/* Compiles a library from @library.c. */
static void compile(const char *name, const char *flags) {
    char command[3 * PATH_MAX];
    const char *compiler = getenv("CC");
    snprintf(command, sizeof command, "%s -shared -fPIC %s -o '%s/%s' '%s/library.c'",
             compiler && *compiler ? compiler : "cc", flags, work, name, work);
    EQUAL(system(command), 0);
}

/* Before the first engine, each of these fails, and the next one can still succeed. */
static void runtime(void) {
    const char *variable = getenv("ORT_DYLIB_PATH"), *good = text(ONE(TINY));
    char *saved = variable ? strdup(variable) : NULL;

    setenv("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so", 1);
    FAILS(cos_engine_new(good, &out.engine), RUNTIME, "ORT_DYLIB_PATH names /nowhere/libonnxruntime.so",
          "name the library");
    /* Before any library is looked for. */
    FAILS(cos_engine_new(text(CONFIG("'threads':4294967297,", TINY, TARGET_0)), &out.engine), CONFIG, "threads",
          "4294967297");
    setenv("ORT_DYLIB_PATH", work, 1);
    FAILS(cos_engine_new(good, &out.engine), RUNTIME, "ORT_DYLIB_PATH", work);
    unsetenv("ORT_DYLIB_PATH");

    write_file("@text.so", "This is no library, but a text that is long enough to be taken for the header of one.");
    write_file("@library.c", "int nothing;\n");
    compile("other.so", "");
    write_file("@library.c",
        "static const void *api(unsigned version) { (void)version; return 0; }\n"
        "static const char *version(void) { return VERSION; }\n"
        "static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = {api, version};\n"
        "const void *OrtGetApiBase(void) { return &base; }\n");
    compile("ancient.so", "-DVERSION='\"1.10.0\"'");
    compile("old.so", "-DVERSION='\"1.23.2\"'");
#define WITH(library) text(CONFIG("'onnxruntime':'" library "',", TINY, TARGET_0))
    FAILS(cos_engine_new(WITH("@missing.so"), &out.engine), RUNTIME, "onnxruntime", work, "missing.so",
          "name the library");
    FAILS(cos_engine_new(WITH("@text.so"), &out.engine), RUNTIME, work, "text.so", "ELF", "1.24 or newer is needed");
    FAILS(cos_engine_new(WITH("@other.so"), &out.engine), RUNTIME, work, "other.so", "OrtGetApiBase", "1.24");
    FAILS(cos_engine_new(WITH("@ancient.so"), &out.engine), RUNTIME, work, "ancient.so", "1.10.0", "1.24");
    FAILS(cos_engine_new(WITH("@old.so"), &out.engine), RUNTIME, work, "old.so", "1.23.2", "1.24");
    /* The variable has precedence, even if it is wrong. */
    setenv("ORT_DYLIB_PATH", text("@ancient.so"), 1);
    FAILS(cos_engine_new(WITH("@old.so"), &out.engine), RUNTIME, "ancient.so", "1.10.0");
    unsetenv("ORT_DYLIB_PATH");

    /* A copy of this library without an ONNX Runtime near it. The system may have one. */
    if (!dlopen("libonnxruntime.so.1", RTLD_LAZY) && !dlopen("libonnxruntime.so", RTLD_LAZY)) {
        cos_error *(*open)(const char *, cos_engine **) = cos_engine_new;
        Dl_info info;
        void *symbol;
        memcpy(&symbol, &open, sizeof symbol);
        EQUAL(dladdr(symbol, &info) != 0, true);
        make_folder("@a"), make_folder("@a/b"), make_folder("@a/b/c"), make_folder("@a/b/c/d");
        copy_file(info.dli_fname, "@a/b/c/d/libcos.so", SIZE_MAX);
        void *copy = must(dlopen(text("@a/b/c/d/libcos.so"), RTLD_NOW | RTLD_LOCAL), "dlopen");
        *(void **)&open = must(dlsym(copy, "cos_engine_new"), "dlsym");
        FAILS(open(text(ONE(TINY)), &out.engine), RUNTIME, "libonnxruntime.so was not found", "a/b/c/d/libcos.so",
              "ORT_DYLIB_PATH", "\"onnxruntime\"");
    } else {
        printf("not tested: no ONNX Runtime at all, because the system has one\n");
    }

    if (saved)
        setenv("ORT_DYLIB_PATH", saved, 1);
    free(saved);
    /* After all of these, a good library. From here on, the pool has one thread. */
    cos_engine *engine = ENGINE(CONFIG("'threads':1,", TINY, TARGET_0));
    cos_session *session = SESSION(engine, 0);
    OK(cos_prompt(session, TOKENS(13)));
    DECODES(session, STOP, 14, 15, 0);
    cos_free(session);
    cos_engine_free(engine);
}

/* ---- Configurations and models -------------------------------------------------------------------------------- */

#define C COS_ERROR_CONFIG
#define M COS_ERROR_MODEL
static const struct {
    const char *where;
    const char *json;
    int32_t code;
    const char *says[6];
} CONFIGURATIONS[] = {
    {HERE, "", C, {"EOF"}},
    {HERE, "{'models':[", C, {"EOF", "line 1"}},
    {HERE, "engine.json", C, {"line 1 column 1"}},
    {HERE, "[]", C, {"expected"}},
    {HERE, "{'combine':{'kind':'target','model':0}}", C, {"models"}},
    {HERE, "{'models':[{'path':'$tiny'}]}", C, {"combine"}},
    {HERE, ONE(""), C, {"models is empty"}},
    {HERE, ONE("{}"), C, {"path"}},
    /* Unknown keys. The message lists the known ones. */
    {HERE, "{'thread':1}", C, {"thread", "threads"}},
    {HERE, ONE("{'path':'$tiny','prvider':'cpu'}"), C, {"prvider", "provider"}},
    {HERE, TWO("{'kind':'weighted','weights':[0.5,0.5],'mu':0.1}"), C, {"mu", "weights"}},
    {HERE, TWO("{'kind':'contrastive','mu':0.1,'alpha':0.1}"), C, {"alpha", "plausibility"}},
    {HERE, TWO("{'kind':'logits','weights':[1,1],'bias':0}"), C, {"bias", "weights"}},
    {HERE, TWO("{'kind':'target','model':0,'draft':1}"), C, {"draft", "model"}},
    {HERE, TWO("{'weights':[0.5,0.5]}"), C, {"kind"}},
    {HERE, TWO("{'kind':'average'}"), C, {"average", "weighted", "contrastive", "logits", "target"}},
    {HERE, TWO("{'kind':'weighted'}"), C, {"weights"}},
    {HERE, TWO("{'kind':'contrastive'}"), C, {"mu"}},
    {HERE, TWO("{'kind':'target'}"), C, {"model"}},
    /* Values. */
    {HERE, ONE("{'path':'$tiny','provider':'tpu'}"), C, {"tpu", "cpu", "cuda"}},
    {HERE, ONE("{'path':'$tiny','device_id':-1}"), C, {"device_id", "-1", "0 or positive"}},
    {HERE, "{'threads':-1}", C, {"-1"}},
    {HERE, "{'threads':'all'}", C, {"all"}},
    {HERE, "{'threads':1,'threads':1}", C, {"duplicate", "threads"}},
    {HERE, CONFIG("'threads':2,", TINY, TARGET_0), C, {"threads is 2", "made with 1", "same number"}},
    {HERE, TWO("{'kind':'weighted','weights':[1]}"), C, {"1 weight", "2 models", "one weight for each model"}},
    {HERE, TWO("{'kind':'weighted','weights':[0.5,0.25,0.25]}"), C, {"3 weights", "2 models"}},
    {HERE, TWO("{'kind':'weighted','weights':[]}"), C, {"0 weights", "2 models"}},
    {HERE, TWO("{'kind':'logits','weights':[1]}"), C, {"1 weight", "2 models"}},
    {HERE, TWO("{'kind':'weighted','weights':[1.5,-0.5]}"), C, {"weights[1] is -0.5", "0 or positive"}},
    {HERE, TWO("{'kind':'weighted','weights':[0.5,0.6]}"), C, {"sum to 1.1", "sum to 1"}},
    {HERE, TWO("{'kind':'weighted','weights':[0,0]}"), C, {"sum to 0", "sum to 1"}},
    {HERE, TWO("{'kind':'weighted','weights':[1e39,0]}"), C, {"out of range"}},
    {HERE, TWO("{'kind':'weighted','weights':[1e999,0]}"), C, {"out of range"}},
    {HERE, TWO("{'kind':'weighted','weights':[NaN,1]}"), C, {"line 1"}},
    {HERE, TWO("{'kind':'logits','weights':[0,0]}"), C, {"weights", "0", "at least one"}},
    {HERE, TWO("{'kind':'logits','weights':[-1e39,1]}"), C, {"out of range"}},
    {HERE, TWO("{'kind':'contrastive','mu':-0.1}"), C, {"mu", "-0.1", "0 or positive"}},
    {HERE, TWO("{'kind':'contrastive','mu':0.1,'plausibility':1.5}"), C, {"plausibility", "1.5", "between 0"}},
    {HERE, CONFIG("", TINY, "{'kind':'contrastive','mu':0.1}"), C, {"amateur", "1 model"}},
    {HERE, TWO("{'kind':'target','model':2}"), C, {"model 2", "2 models"}},
    {HERE, TWO("{'kind':'target','model':-1}"), C, {"-1"}},
    /* Look-ups, which only draft. */
    {HERE, ONE(TINY ",{'kind':'ngram','path':'$tiny'}"), C, {"ngram", "`path`", "`name`"}},
    {HERE, ONE(TINY ",{'kind':'ngram','provider':'cpu'}"), C, {"ngram", "`provider`", "`name`"}},
    {HERE, ONE(TINY ",{'kind':'ngram','device_id':0}"), C, {"ngram", "`device_id`", "`name`"}},
    {HERE, ONE(TINY ",{'kind':'ngram','length':3}"), C, {"length", "name"}},
    {HERE, ONE(TINY ",{'kind':'bigram'}"), C, {"bigram", "onnx", "ngram"}},
    {HERE, ONE("{'kind':'onnx'}"), C, {"path"}},
    {HERE, ONE("{'kind':'ngram'}"), C, {"look-ups", "at least one"}},
    {HERE, CONFIG("", "{'kind':'ngram'}," TINY, TARGET_0), C, {"target model 0 is a look-up", "another model"}},
    {HERE, CONFIG("", TINY ",{'kind':'ngram'}", "{'kind':'weighted','weights':[0.5,0.5]}"), C,
     {"weights[1] is 0.5", "look-up", "to 0"}},
    {HERE, CONFIG("", TINY ",{'kind':'ngram'}", "{'kind':'contrastive','mu':0.1}"), C,
     {"model 1 is the amateur", "look-up", "before all look-ups"}},
    /* Files that are missing or corrupt. */
    {HERE, ONE(PATH("$none")), M, {"fixtures/none", "does not exist", ".onnx"}},
    {HERE, ONE(PATH("$tiny/none.onnx")), M, {"tiny/none.onnx", "does not exist"}},
    {HERE, ONE(PATH("$ti\\u0000ny")), M, {"fixtures/ti", "does not exist"}},
    {HERE, ONE(PATH("")), M, {"does not exist"}},
    {HERE, ONE(PATH("@empty")), M, {"/empty", "no .onnx file"}},
    {HERE, ONE(PATH("@several")), M, {"/several", "holds a.onnx, b.onnx", "name one"}},
    {HERE, ONE(PATH("@truncated")), M, {"truncated/model.onnx", "Protobuf"}},
    {HERE, ONE(PATH("@hollow")), M, {"hollow/model.onnx"}},
    {HERE, ONE(PATH("@prose")), M, {"prose/model.onnx"}},
    {HERE, ONE(PATH("$tiny/tokenizer.json")), M, {"tiny/tokenizer.json"}},
    {HERE, ONE(PATH("$external")), M, {"external/model.onnx", "model.onnx.data"}},
    {HERE, ONE(PATH("@genai")), M, {"genai/genai_config.json", "not JSON"}},
    {HERE, ONE(PATH("@tokenizer")), M, {"tokenizer/tokenizer.json"}},
    {HERE, BOTH("$tiny", "@tokenizer"), M, {"tokenizer/tokenizer.json"}},
    {HERE, ONE(PATH("@silent")), M, {"silent/tokenizer.json", "no tokens"}},
    {HERE, ONE(PATH("@bytes")), M, {"bytes/tokenizer.json", "the continuing_subword_prefix, \"x\""}},
    /* Models that are no decoders of text. */
    {HERE, ONE(PATH("$vision")), M, {"vision/model.onnx", "not a language model", "input_ids", "pixel_values"}},
    {HERE, ONE(PATH("$headless")), M,
     {"headless/model.onnx", "not a language model", "logits", "last_hidden_state", "its inputs are input_ids"}},
    /* Models that do not fit together. */
    {HERE, BOTH("$tiny", "$wide"), M, {"token 16 ", "missing to tiny", "\"p\" to wide", "one vocabulary"}},
    {HERE, BOTH("$wide", "$tiny"), M, {"token 16 ", "\"p\" to wide", "missing to tiny"}},
    {HERE, BOTH("$notoken", "$wide"), M,
     {"wide has 24 tokens", "notoken has 16", "notoken came without a tokenizer.json", "one vocabulary"}},
    {HERE, BOTH("$tiny", "$renamed"), M, {"token 7 ", "\"g\" to tiny", "\"other\" to renamed", "one vocabulary"}},
    {HERE, ONE("{'path':'$tiny','name':'A'}," TINY ",{'path':'$renamed/model.onnx','name':'B'}"), M,
     {"token 7 ", "\"g\" to A", "\"other\" to B"}},
    {HERE, ONE("{'path':'$tiny','provider':'cuda'}"), COS_ERROR_RUNTIME,
     {"cuda", "tiny", "libonnxruntime_providers_cuda.so", "onnxruntime-gpu", "\"cpu\""}},
};

static void described(cos_engine *engine, const char *says) {
    const char *json = NULL, *again = NULL, *table = NULL;
    OK(cos_engine_describe(engine, &json));
    EQUAL(json && strstr(json, says), true);
    OK(cos_engine_describe(engine, &again));
    EQUAL(again == json, true);
    OK(cos_engine_describe_table(engine, &table));
    EQUAL(table && strstr(table, "context length"), true);
    cos_engine_free(engine);
}

/* A tokenizer.json with this vocabulary. */
#define TOKENIZER(vocabulary)                                                                                          \
    "{'version':'1.0','added_tokens':[],'pre_tokenizer':{'type':'Whitespace'},"                                        \
    "'model':{'type':'WordLevel','vocab':{" vocabulary "},'unk_token':'?'}}"

static void configurations(void) {
    make_folder("@empty"), make_folder("@several");
    write_file("@several/a.onnx", ""), write_file("@several/b.onnx", "");
    spoil("truncated", "model.onnx", NULL);
    spoil("hollow", "model.onnx", "");
    spoil("prose", "model.onnx", "This is no graph at all, but prose.");
    spoil("genai", "genai_config.json", "{'model':");
    spoil("unbounded", "genai_config.json", "{'search':{'past_present_share_buffer':true}}");
    spoil("zero", "genai_config.json", "{'model':{'context_length':0},'search':{'past_present_share_buffer':true}}");
    spoil("tokenizer", "tokenizer.json", "{'version':'1.0'}");
    spoil("silent", "tokenizer.json", TOKENIZER(""));
    spoil("bytes", "tokenizer.json",
          "{'version':'1.0','model':{'type':'BPE','vocab':{'a':1,'\u00e9':4,'a\u00e9':5},'merges':[['a','\u00e9']],"
          "'continuing_subword_prefix':'x'}}");
    for (size_t i = 0; i < COUNT(CONFIGURATIONS); i++) {
        reset();
        const char *json = CONFIGURATIONS[i].json;
        fails(CONFIGURATIONS[i].where, json, cos_engine_new(text(json), &out.engine), CONFIGURATIONS[i].code,
              CONFIGURATIONS[i].says);
    }

    /* The graph limits the context if no configuration does: the rotary table has 32 rows. */
    described(ENGINE(ONE(PATH("@unbounded"))), "\"context_length\":32");
    described(ENGINE(ONE(PATH("@zero"))), "\"context_length\":32");
    described(ENGINE(ONE("{'path':'$tiny','context_length':20}")), "\"context_length\":20");
    /* Each token attends to the mean of all tokens in a pass, so only passes of one token are causal. */
    described(ENGINE(ONE(PATH("$optimum"))), "\"rollback\":\"compact\"");
    described(ENGINE(ONE(PATH("$optimum"))), "\"scoring\":\"one_by_one\"");

    /* Warnings about tokenizers. */
    described(ENGINE(BOTH("$notoken", "$tiny")), "notoken came without a tokenizer.json");
    described(ENGINE(BOTH("$notoken", "$notoken")), "notoken came without a tokenizer.json");
    spoil("longer", "tokenizer.json", TOKENIZER("'a':0,'z':4294967294"));
    spoil("equal", "tokenizer.json", TOKENIZER("'a':0, 'z':4294967294"));
    described(ENGINE(BOTH("@longer", "@equal")), "has 4294967295 tokens, but its logits have only 16 columns");
    spoil("start", "model.onnx.data", "");
    write_file("@start/tokenizer_config.json", "{'add_bos_token':true,'bos_token':{'content':'<eos>'}}");
    described(ENGINE(ONE(PATH("@start"))), "asks for the start token \\\"<eos>\\\" (add_bos_token)");

    FAILS(cos_engine_new("{\"models\": \"\xff\"}", &out.engine), INVALID_ARGUMENT, "config_json", "UTF-8");
    FAILS(cos_engine_open("\xff.json", &out.engine), INVALID_ARGUMENT, "config_path", "UTF-8");
    FAILS(cos_engine_open(text("@none.json"), &out.engine), CONFIG, "cannot read", "/none.json");
    FAILS(cos_engine_open("", &out.engine), CONFIG, "cannot read");
    FAILS(cos_engine_open(work, &out.engine), CONFIG, "cannot read", work);
    write_file("@cut.json", "{\n 'models': [{'path': 'tiny'},\n");
    FAILS(cos_engine_open(text("@cut.json"), &out.engine), CONFIG, "/cut.json", "line");
    write_file("@latin.json", "{'models': '\xe4'}");
    FAILS(cos_engine_open(text("@latin.json"), &out.engine), CONFIG, "/latin.json", "UTF-8");
    write_file("@weights.json", TWO("{'kind':'weighted','weights':[2,-1]}"));
    FAILS(cos_engine_open(text("@weights.json"), &out.engine), CONFIG, "/weights.json", "weights[1] is -1");
    write_file("@relative.json", ONE(PATH("truncated")));
    FAILS(cos_engine_open(text("@relative.json"), &out.engine), MODEL, work, "/truncated/model.onnx");
}
