// A program that uses ONNX Runtime by itself, and CoS beside it: one before the other, or the other way round.
//
//     host FIRST ONNXRUNTIME CONFIG MODEL     FIRST is "cos" or "onnxruntime"
#include <cos.hpp>
#include <dlfcn.h>

#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

// The beginning of ONNX Runtime's table of functions, whose order never changes.
struct Api {
    void* before[2];
    const char* (*message)(const void* status);
    void* (*create_env)(int level, const char* id, void** env);
    void* more[3];
    void* (*create_session)(void* env, const char* path, void* options, void** session);
    void* further[2];
    void* (*create_options)(void** options);
};

class Host {
public:
    explicit Host(const char* library) {
        struct Base {
            const Api* (*api)(unsigned);
        };
        void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
        if (!handle) throw std::runtime_error(dlerror());
        api = reinterpret_cast<const Base* (*)()>(dlsym(handle, "OrtGetApiBase"))()->api(24);
        check(api->create_env(3, "host", &env));
    }
    void load(const char* model) {
        void *options, *session;
        check(api->create_options(&options));
        check(api->create_session(env, model, options, &session));
    }

private:
    void check(void* status) {
        if (status) throw std::runtime_error(api->message(status));
    }
    const Api* api;
    void* env = nullptr;
};

std::string decode(const cosrt::Engine& engine) {
    cosrt::SessionOptions options;
    options.max_tokens = 8;
    auto session = engine.session(options).value();
    session.prompt(std::vector<int32_t>{5, 6, 7, 8}).value();
    std::string text = "[";
    for (const auto& step : session.steps())
        for (int32_t token : step.value().tokens) text += (text.size() > 1 ? " " : "") + std::to_string(token);
    return text + "]";
}

int main(int, char** arguments) try {
    const bool host_first = arguments[1] == std::string("onnxruntime");
    std::vector<Host> host;
    if (host_first) host.emplace_back(arguments[2]);
    const auto engine = cosrt::Engine::open(arguments[3]).value();
    const std::string before = decode(engine);
    if (!host_first) host.emplace_back(arguments[2]);
    host[0].load(arguments[4]);
    if (decode(engine) != before) throw std::runtime_error("the text has changed");
    const std::string about(engine.describe().value()), key = "\"thread_pool\":\"";
    const auto pool = about.substr(about.find(key) + key.size());
    std::cout << before << ' ' << pool.substr(0, pool.find('"')) << '\n';
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
